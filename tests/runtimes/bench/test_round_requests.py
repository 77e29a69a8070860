"""Who is asked what and when by a benchmark's rounds, and what is kept of the answers; time is made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench import rounds
from llmc.runtimes.bench.analysis import Peak, Sample
from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.prompts import TokenText, read_prompts
from llmc.runtimes.bench.results import BenchCase, Subject
from llmc.runtimes.bench.rounds import Rounds, Steps, count_steps
from llmc.runtimes.bench.workers.remote import LLMC_WORKER
from llmc.runtimes.machine.gpu import EnergyCurve
from llmc.runtimes.machine.summary import Summary

from .office import ONE, TWO, A, B, Clerk, Office, Watcher, on_cuda


def measure(
    subjects: list[Subject], cases: list[BenchCase], *, sampler: Any = None, processor: Any = None, **options: Any
) -> tuple[Rounds, list[tuple[str, int, int]]]:
    """A whole measurement, and what it announced."""
    announced: list[tuple[str, int, int]] = []
    chosen = BenchOptions(**options)
    steps = Steps(count_steps(subjects, cases, chosen), lambda *step: announced.append(step))
    bench = Rounds(subjects, cases, chosen, steps, sampler, processor)
    bench.measure()
    assert [number for _, number, _ in announced] == list(range(1, steps.total + 1))
    assert not any(worker.is_open for worker in rounds.WorkerProcess.workers)  # type: ignore[attr-defined]
    return bench, announced


def test_interleaved(office: Office) -> None:
    """Memory in a process for each case; one worker a subject, warmed up for all cases; then case by case in turn."""
    measure([A, B], [ONE, TWO], runs=2, seed=40, warm_steps=7)
    alone = [
        step
        for number, (label, prompt) in enumerate([("a", 4), ("a", 9), ("b", 4), ("b", 9)], start=1)
        for step in [
            (number, label, "open", None, None),
            (number, label, "run", prompt, 40),
            (number, label, "memory", None, None),
        ]
    ]
    a, b = (5, "a"), (6, "b")
    opened = [(*who, "open", None, None) for who in (a, b)]
    warm = [(*who, "run", prompt, 40) for who in (a, b) for prompt in (4, 9)]
    timed = [(*who, "run", prompt, seed) for seed in (40, 41) for prompt in (4, 9) for who in (a, b)]
    assert office.told("prompt", "seed") == [*alone, *opened, *warm, *timed]


def test_one_at_a_time(office: Office) -> None:
    """Half of the rounds, then the others' and the second half in reverse; memory is noted in the first visit."""
    measure([A, B], [ONE, TWO], runs=3, warm_steps=7, one_at_a_time=True)
    first = [
        ("open", None, None),
        *(step for prompt in (4, 9) for step in [("run", prompt, 0), ("memory", None, None)]),
    ]
    again = [("open", None, None), ("run", 4, 0), ("run", 9, 0)]

    def turns(*seeds: int) -> list[tuple[str, int, int]]:
        return [("run", prompt, seed) for seed in seeds for prompt in (4, 9)]

    assert office.told("prompt", "seed") == [
        *((1, "a", *what) for what in [*first, *turns(0, 1)]),
        *((2, "b", *what) for what in [*first, *turns(0, 1, 2)]),
        *((3, "a", *what) for what in [*again, *turns(2)]),
    ]


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_without_memory_no_process_is_started_for_it(office: Office, one_at_a_time: bool) -> None:
    bench, announced = measure([A], [ONE, TWO], runs=2, measure_memory=False, one_at_a_time=one_at_a_time)
    assert bench.peaks == {}
    assert len(office.workers) == 1
    assert not any(command == "memory" for _, _, command, _ in office.asked)
    assert [what for what, _, _ in announced] == [
        *("a, pp4+tg3: warm-up", "a, pp9+tg5 x2: warm-up"),
        *("a, pp4+tg3: run 1 of 2", "a, pp9+tg5 x2: run 1 of 2"),
        *("a, pp4+tg3: run 2 of 2", "a, pp9+tg5 x2: run 2 of 2"),
    ]


def test_workers_get_what_was_asked_for(office: Office) -> None:
    measure([A], [TWO], runs=1, seed=40, warm_steps=7, threads=3)
    assert [fields for _, _, command, fields in office.asked if command == "open"] == [
        {"path": "a", "threads": 3}
    ] * 2
    wanted = {"prompt": 9, "gen": 5, "batch": 2, "seed": 40, "warm_steps": 7}
    assert [fields for _, _, command, fields in office.asked if command == "run"] == [wanted] * 3


def test_samples_are_those_of_the_rounds_in_their_order(office: Office) -> None:
    bench, _ = measure([A, B], [ONE], runs=3, seed=10)
    assert bench.samples == {
        ("a", ONE): [Sample(float(11 + turn), (0.5, 0.5), pytest.approx(0.1 + 0.2 * turn)) for turn in range(3)],
        ("b", ONE): [Sample(float(11 + turn), (0.5, 0.5), pytest.approx(0.2 + 0.2 * turn)) for turn in range(3)],
    }


def test_a_subject_is_known_by_its_first_opening_and_loaded_in_each(office: Office) -> None:
    bench, _ = measure([A, B], [ONE, TWO], runs=1)
    record = bench.opened["b"].record()
    assert record.base_rss_bytes == 30
    assert record.load_s == Summary(4.0, 3.0, 6.0, 3)


def test_peaks_are_those_of_each_cases_process(office: Office) -> None:
    bench, _ = measure([A, B], [ONE, TWO], runs=1)
    peaks = {("a", ONE): 1001, ("a", TWO): 1002, ("b", ONE): 1003, ("b", TWO): 1004}
    assert bench.peaks == {key: Peak(size, None) for key, size in peaks.items()}


def test_idle_workers_are_known_by_their_busiest_round(office: Office) -> None:
    """CPU seconds in the two seconds of another's run; what a worker uses in its own runs does not count."""
    office.spent["a"] = iter([9.0, 9.0, 1.5, 0.5])  # the first two while the other is warmed up
    bench, _ = measure([A, B], [ONE, TWO], runs=1, measure_memory=False)
    assert bench.idle_share == {"a": 0.75, "b": 0.0}


def test_what_a_worker_says_of_window_and_energy_is_kept(office: Office) -> None:
    office.said["a", "run"] = {"decode_window": [5, 7], "energy_j": 8.0}
    bench, _ = measure([A], [ONE], runs=1)
    assert bench.samples["a", ONE] == [Sample(1.0, (0.5, 0.5), 0.1, (5.0, 7.0), 8.0)]


def test_energy_that_was_measured_outside_is_put_into_the_samples(office: Office) -> None:
    on_cuda(office, "a")
    office.said["a", "run"] = {"decode_window": [5, 7], "energy_j": 8.0}
    watcher = Watcher(office)
    watcher.energy = EnergyCurve([4.0, 5.0, 6.0, 8.0], [0.0, 1.0, 3.0, 5.0])
    bench, _ = measure([A], [ONE], sampler=watcher, runs=1)
    assert bench.samples["a", ONE] == [Sample(1.0, (0.5, 0.5), 0.1, (5.0, 7.0), 3.0)]


def test_the_energy_is_that_of_what_a_subject_runs_on(office: Office) -> None:
    """Joules of the GPU for the one on it, of the processor for the other."""
    on_cuda(office, "a")
    office.said |= {(label, "run"): {"decode_window": [5, 7]} for label in "ab"}
    gpu, processor = Watcher(office), Watcher(office)
    gpu.energy = EnergyCurve([4.0, 5.0, 6.0, 8.0], [0.0, 1.0, 3.0, 5.0])
    processor.energy = EnergyCurve([4.0, 5.0, 6.0, 8.0], [0.0, 10.0, 30.0, 50.0])
    bench, _ = measure([A, B], [ONE], sampler=gpu, processor=processor, runs=1)
    assert [bench.samples[label, ONE][0].energy_j for label in "ab"] == [3.0, 30.0]
    bench, _ = measure([A, B], [ONE], sampler=gpu, runs=1)
    assert [bench.samples[label, ONE][0].energy_j for label in "ab"] == [3.0, None]


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_the_processor_is_watched_all_the_time(office: Office, one_at_a_time: bool) -> None:
    measure([A], [ONE], processor=Watcher(office), runs=1, one_at_a_time=one_at_a_time)
    found = commands(office)
    assert (found[0], found[-1], found.count("watch")) == ("watch", "watched", 1)


def commands(office: Office) -> list[str]:
    return [command for _, _, command, _ in office.asked]


def test_the_gpu_is_watched_from_before_a_worker_opens_until_its_memory_is_known(office: Office) -> None:
    on_cuda(office, "a")
    watcher = Watcher(office)
    watcher.peak = 7000
    bench, _ = measure([A], [ONE], sampler=watcher, runs=1)
    assert commands(office) == [
        *("watch", "follow 1", "open", "run", "memory", "peak", "watched"),
        *("open", "run", "watch", "run", "watched"),
    ]
    assert bench.peaks["a", ONE] == Peak(1001, 7000)


def test_one_at_a_time_memory_is_left_alone_while_rounds_are_timed(office: Office) -> None:
    on_cuda(office, "a")
    measure([A], [ONE], sampler=Watcher(office), runs=2, one_at_a_time=True)
    assert commands(office) == [
        *("watch", "follow 1", "open", "run", "memory", "peak", "unfollow", "run", "run", "watched"),
    ]


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_the_gpu_rests_where_a_subject_does_not_use_it(office: Office, one_at_a_time: bool) -> None:
    bench, _ = measure([A], [ONE], sampler=Watcher(office), runs=1, one_at_a_time=one_at_a_time)
    found = commands(office)
    assert found[:6] == ["watch", "follow 1", "open", "rest", "run", "memory"]
    assert found.count("watch") == 1
    assert "peak" not in found
    assert bench.on_cuda == frozenset()


def test_device_memory_is_what_was_seen_else_what_the_worker_says(office: Office) -> None:
    on_cuda(office, "a")
    office.said["a", "memory"] = office.said["b", "memory"] = {"device_bytes": 9000}
    watcher = Watcher(office)
    for seen, kept in ((7000, 7000), (None, 9000)):
        watcher.peak = seen
        bench, _ = measure([A, B], [ONE], sampler=watcher, runs=1)
        assert (bench.peaks["a", ONE].device_bytes, bench.peaks["b", ONE].device_bytes) == (kept, None)
    assert bench.on_cuda == {"a"}


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_the_first_failure_ends_everything(office: Office, one_at_a_time: bool) -> None:
    office.said["b", "run"] = {"error": "out of memory"}
    with pytest.raises(EngineError, match="b: out of memory"):
        measure([A, B], [ONE], runs=1, measure_memory=False, one_at_a_time=one_at_a_time)
    assert not any(worker.is_open for worker in office.workers)
    assert office.workers[-1].failure


@pytest.mark.parametrize("one_at_a_time", [False, True])
def test_a_case_that_a_peer_refuses_is_left_out_for_it_alone(
    office: Office, monkeypatch: pytest.MonkeyPatch, one_at_a_time: bool
) -> None:
    usual = Clerk.run

    def refusing(self: Clerk, batch: int, **fields: Any) -> dict[str, Any]:
        if self.label == "b" and batch == TWO.batch:
            raise EngineError("b: run failed, RuntimeError: one row at a time\nTraceback")
        return usual(self, **fields)

    monkeypatch.setattr(Clerk, "run", refusing)
    bench, _ = measure([A, B], [ONE, TWO], runs=3, one_at_a_time=one_at_a_time)
    assert bench.refusals == {("b", TWO): "run failed, RuntimeError: one row at a time"}
    assert {key: len(runs) for key, runs in bench.samples.items()} == {
        ("a", ONE): 3,
        ("a", TWO): 3,
        ("b", ONE): 3,
    }
    assert ("b", TWO) not in bench.peaks
    assert ("b", ONE) in bench.peaks
    asked = [fields["batch"] for _, label, command, fields in office.asked if (label, command) == ("b", "run")]
    assert asked.count(TWO.batch) == 1, "it is not asked again"


def test_what_an_engine_of_llmcs_refuses_ends_everything(office: Office) -> None:
    engine = Subject("c", Path("c"), LLMC_WORKER)
    office.said["c", "run"] = {"error": "out of memory"}
    with pytest.raises(EngineError, match="c: out of memory"):
        measure([A, engine], [ONE, TWO], runs=1)


def test_requests_are_generated_after_each_run_by_those_who_can(office: Office) -> None:
    """Peers have loops of their own: llmc's is not measured with them."""
    engine = Subject("c", Path("c"), LLMC_WORKER)
    bench, announced = measure([A, engine], [TWO], runs=2, seed=40, warm_steps=7, generate=3, temperature=0.5)
    asked = [(label, command) for _, label, command, _ in office.asked if command in {"run", "generate"}]
    assert asked[-6:] == [("a", "run"), ("c", "run"), ("c", "generate")] * 2
    fields = [fields for _, _, command, fields in office.asked if command == "generate"]
    shared = {"prompt": 9, "gen": 5, "batch": 2, "warm_steps": 7, "requests": 3, "temperature": 0.5}
    assert fields == [{**shared, "seed": 40}, {**shared, "seed": 41}]
    assert [what for what, _, _ in announced if "requests" in what] == [
        "c, pp9+tg5 x2: 3 requests, round 1 of 2",
        "c, pp9+tg5 x2: 3 requests, round 2 of 2",
    ]
    assert {key: [len(each) for each in rounds] for key, rounds in bench.generations.items()} == {("c", TWO): [3, 3]}
    assert bench.generations["c", TWO][0][0].ttft_s == 2


def test_texts_are_answered_after_each_round_by_those_who_can(office: Office, tmp_path: Path) -> None:
    engine, file = Subject("c", Path("c"), LLMC_WORKER), tmp_path / "p.txt"
    file.write_text("one\ntwo\n")
    chosen = BenchOptions(runs=2, seed=40, mode="text", prompts=str(file), temperature=0.5)
    subjects, cases = [A, engine], [ONE, TWO]
    bench = Rounds(subjects, cases, chosen, Steps(count_steps(subjects, cases, chosen), None))
    bench.prompts = read_prompts(file)
    bench.measure()
    assert bench.steps.done == bench.steps.total
    asked = [(label, fields) for _, label, command, fields in office.asked if command == "text"]
    shared = {"prompts": ["one", "two"], "gen": 5, "temperature": 0.5}
    assert asked == [("c", {**shared, "seed": 40}), ("c", {**shared, "seed": 41})]
    assert [(it.label, it.round, it.prompt, it.tokens) for it in bench.texts] == [
        *(("c", 0, 0, 5), ("c", 0, 1, 5), ("c", 1, 0, 5), ("c", 1, 1, 5))
    ]


def test_tokens_of_a_text_go_to_every_subject(office: Office) -> None:
    chosen = BenchOptions(runs=2, measure_memory=False)
    bench = Rounds([A, B], [ONE], chosen, Steps(count_steps([A, B], [ONE], chosen), None))
    bench.tokens = TokenText(tuple(range(100)))
    bench.measure()
    told = [fields["tokens"][0] for _, _, command, fields in office.asked if command == "run"]
    first, second = list(range(6)), list(range(6, 12))
    assert told == [first, first, first, first, second, second]


def test_without_requests_nothing_is_generated(office: Office) -> None:
    bench, _ = measure([Subject("c", Path("c"), LLMC_WORKER)], [ONE], runs=1)
    assert bench.generations == {}
    assert all(command != "generate" for _, _, command, _ in office.asked)
