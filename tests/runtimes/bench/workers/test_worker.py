import ast
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.runtimes.bench.workers import protocol, worker
from llmc.runtimes.bench.workers.protocol import RunRequest, memory_status
from llmc.runtimes.bench.workers.worker import SessionTarget
from llmc.runtimes.device.session import DeviceSession
from llmc.runtimes.session.capabilities import RowState
from llmc.runtimes.session.sampling_params import SamplingParams

from ...tiny_engine import open_tiny

BENCH = Path(protocol.__file__).parent


def test_requests_give_the_same_valid_tokens_everywhere():
    request = RunRequest(prompt=50, gen=20, batch=3, seed=5)
    prompt, steps = request.prompt_tokens(97), request.step_tokens(97)
    assert np.shape(prompt) == (3, 50)
    assert np.shape(steps) == (19, 3)
    assert np.min(prompt) >= 0
    assert np.max(prompt) < 97
    assert prompt == RunRequest(50, 20, 3, seed=5).prompt_tokens(97)
    assert prompt != RunRequest(50, 20, 3, seed=6).prompt_tokens(97)
    assert prompt[0] != prompt[1]


def run(fake, request, **options):
    session = fake.FakeSession(**options)
    target = SessionTarget(lambda directory, threads: session)
    target.open("anything", None)
    times = target.run(request)
    return times, session.calls


def test_a_run_is_one_prefill_and_gen_minus_one_steps(fake):
    times, calls = run(fake, RunRequest(prompt=6, gen=4, batch=2, warm_steps=2))
    assert calls == [
        ("reset", 2, 9),
        ("forward", 2, 1),
        ("forward", 2, 1),
        ("reset", 2, 9),
        ("forward", 2, 6),
        *[("forward", 2, 1)] * 3,
    ]
    assert len(times.step_s) == 3
    assert times.first_token_s > 0


def test_prefill_is_cut_where_the_engine_has_profiles(fake):
    _, calls = run(fake, RunRequest(prompt=10, gen=2, batch=1, warm_steps=0), profiles=[[1, 1], [2, 4]])
    assert [call[2] for call in calls if call[0] == "forward"] == [4, 4, 2, 1]


def test_times_are_those_of_the_calls(fake):
    times, _ = run(fake, RunRequest(prompt=6, gen=3, batch=1, warm_steps=0), prefill_ms=30, step_ms=10)
    assert times.first_token_s >= 0.03
    assert min(times.step_s) >= 0.01
    assert min(times.step_s) < 0.03


class Queueing:
    """A session whose ``forward`` queues a second of work a token, and whose ``argmax`` waits for it."""

    chooser = None

    def __init__(self, session):
        self.session, self.info = session, session.info
        self.now, self.queued, self.fed, self.device_bytes = 100.0, 0.0, [], session.device_bytes

    def reset(self, batch, capacity):
        self.now += 1000
        self.session.reset(batch, capacity)

    def forward(self, ids):
        self.fed.append(ids.tolist())
        self.queued += ids.shape[1]
        logits = self.session.forward(ids)
        return SimpleNamespace(argmax=lambda: self.wait() or logits.argmax())

    def wait(self):
        self.now, self.queued = self.now + self.queued, 0.0


@pytest.fixture
def queueing(fake, monkeypatch):
    """``queueing(request, **options)``: what a run of such a session takes, and what it was fed."""

    def run(request, **options):
        session = Queueing(fake.FakeSession(**{"prefill_ms": 0, "step_ms": 0, **options}))
        monkeypatch.setattr(
            worker, "time", SimpleNamespace(perf_counter=lambda: session.now, time=lambda: session.now)
        )
        target = SessionTarget(lambda directory, threads: session)
        target.open("anything", None)
        return target.run(request), session.fed

    return run


@pytest.mark.parametrize("profiles", [[], [[1, 1], [2, 4]]])
def test_the_clock_stops_when_the_work_is_done_and_allocation_is_not_timed(queueing, profiles):
    times, _ = queueing(RunRequest(prompt=10, gen=4, batch=2, warm_steps=3), profiles=profiles)
    assert times.first_token_s == 10
    assert times.step_s == (1, 1, 1)
    begin, end = times.decode_window
    assert end - begin == 3


def test_a_run_is_fed_the_request_s_tokens(queueing):
    """Rows by rows; warm-up steps take the prompt's columns in turn, and never more than the cache holds."""
    request = RunRequest(prompt=2, gen=4, batch=3, seed=9, warm_steps=50)
    _, fed = queueing(request)
    prompt, steps = request.prompt_tokens(32), request.step_tokens(32)
    columns = [[[row[step % 2]] for row in prompt] for step in range(5)]
    assert fed == [*columns, prompt, *([[token] for token in tokens] for tokens in steps)]


def test_a_case_that_just_fills_the_context(fake):
    request = RunRequest(prompt=5, gen=4, batch=1, warm_steps=0)
    assert run(fake, request, max_context=8)[1][1] == ("reset", 1, 8)
    with pytest.raises(UsageError, match=r"prompt 5 \+ gen 4 needs 8 slots, the engine has 7"):
        run(fake, request, max_context=7)


def test_info_is_plain(fake):
    session = fake.FakeSession()
    session.info = replace(session.info, details={"path": "x", "count": "3"})
    info = SessionTarget(lambda directory, threads: session).open("anything", None)
    assert info["details"] == {"path": "x", "count": "3"}
    assert (info["vocab_size"], info["weight_bytes"]) == (32, 1_000_000)


def test_closing_twice_is_closing_once(fake):
    session = fake.FakeSession()
    target = SessionTarget(lambda directory, threads: session)
    target.open("anything", None)
    target.close()
    target.close()
    assert session.calls == [("close",)]


def test_run_before_open():
    with pytest.raises(EngineError, match="before open"):
        SessionTarget().run(RunRequest(1, 2, 1))


def test_memory_status_counts_bytes(tmp_path):
    status = tmp_path / "status"
    status.write_text("Name:\tx y\nVmHWM:\t    2048 kB\nVmRSS:\t    1024 kB\n")
    assert memory_status(status) == {"peak_rss_bytes": 2048 * 1024, "rss_bytes": 1024 * 1024}
    assert memory_status()["peak_rss_bytes"] > 1 << 20


SHARED_BY_PEERS = ("protocol", "ticks", "gguf_header")


@pytest.mark.parametrize(
    "path",
    [*(BENCH / f"{name}.py" for name in SHARED_BY_PEERS), *sorted(BENCH.glob("peer_*.py"))],
    ids=lambda path: path.name,
)
def test_peers_need_the_standard_library_only(path):
    """They run in an interpreter without llmc: what they import at the top must be there."""
    allowed = {*sys.stdlib_module_names, *(f"llmc.runtimes.bench.workers.{name}" for name in SHARED_BY_PEERS)}
    for node in ast.parse(path.read_text()).body:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert all(name in allowed or name.split(".")[0] in sys.stdlib_module_names for name in names), names


class Loop:
    """A decode loop on a device: a step takes 3 s of the host's time, and by the device's events its number / 8."""

    def __init__(self, session):
        self.session, self.said = session, []
        session.now += 7  # its buffers

    def tokens(self, step):
        self.said.append(("tokens", step))
        self.session.now += 3

    def step_seconds(self, step):
        self.said.append(("seconds", step))
        return step / 8

    def close(self):
        self.said.append("close")


class OnDevice(DeviceSession):
    """Everything of a session on a device that a worker asks for; a token of a prompt takes a second."""

    chooser, info = property(lambda self: self), None

    def __init__(self, session):
        self.now, self.loops, self.fed, self.resets = 100.0, [], [], []
        self.info = session.info

    def reset(self, batch, capacity):
        self.now += 1000
        self.resets.append((batch, capacity))

    def forward(self, ids):
        self.fed.append(ids.tolist())
        return SimpleNamespace(argmax=lambda: self.work(ids.shape[1]))

    def work(self, seconds):
        self.now += seconds
        return np.zeros(2, np.int64)

    def begin(self, rows):
        self.loops.append(Loop(self))
        self.asked = rows
        return self.loops[-1]


@pytest.mark.parametrize(("warm_steps", "warmed"), [(0, 1), (2, 2), (50, 3)])
def test_a_device_s_steps_are_timed_by_its_events_and_their_window_by_the_host(fake, monkeypatch, warm_steps, warmed):
    """The window opens when the loop is ready and closes with the last step; a step at least is warmed up."""
    session = OnDevice(fake.FakeSession())
    monkeypatch.setattr(worker, "time", SimpleNamespace(perf_counter=lambda: session.now, time=lambda: session.now))
    target = SessionTarget(lambda directory, threads: session)
    target._session = session
    request = RunRequest(prompt=10, gen=4, batch=2, warm_steps=warm_steps)
    times = target.run(request)
    assert times.first_token_s == 10
    assert times.step_s == (1 / 8, 2 / 8, 3 / 8)
    begin, end = times.decode_window
    assert (end, end - begin) == (session.now, 9)
    warm, timed = session.loops
    assert warm.said == [("tokens", warmed), "close"]
    assert timed.said == [*(("tokens", n) for n in (1, 2, 3)), *(("seconds", n) for n in (1, 2, 3)), "close"]
    assert session.fed == [request.prompt_tokens(32)] * 2
    assert session.resets == [(2, 13)] * 2
    assert session.asked == [RowState(0, SamplingParams(), row, 1, 3) for row in (0, 1)]


@pytest.fixture(scope="module")
def device_target():
    session = open_tiny()
    target = SessionTarget(lambda directory, threads: session)
    target.open("anything", None)
    yield target, session
    target.close()


@pytest.mark.parametrize(("prompt", "gen", "batch"), [(6, 12, 2), (5, 2, 1), (63, 2, 2), (61, 4, 1)])
def test_a_session_on_a_device_runs_its_own_loop(device_target, monkeypatch, prompt, gen, batch):
    target, session = device_target
    request = RunRequest(prompt=prompt, gen=gen, batch=batch)
    loops, resets = [], []
    begin, reset = session.chooser.begin, session.reset
    monkeypatch.setattr(session.chooser, "begin", lambda *args: loops.append(begin(*args)) or loops[-1])
    monkeypatch.setattr(session, "reset", lambda *args: resets.append(args) or reset(*args))
    times = target.run(request)
    assert resets == [(batch, prompt + gen - 1)] * 2
    assert session.lengths.tolist() == [request.capacity] * batch
    assert len(times.step_s) == gen - 1
    assert min(times.step_s) > 0
    assert times.first_token_s > 0
    begin, end = times.decode_window
    assert sum(times.step_s) <= end - begin + 0.05
    warm, timed = loops
    assert warm.tokens(1).tolist() == timed.tokens(1).tolist()
    made = [timed.tokens(step).tolist() for step in range(1, gen)]
    session.reset(batch, request.capacity)
    logits = session.forward(np.array(request.prompt_tokens(160)))
    for tokens in made:
        logits = session.forward(logits.argmax()[:, None])
        assert logits.argmax().tolist() == tokens


def test_the_host_s_memory_is_not_a_device_s(device_target):
    assert device_target[0].device_bytes() is None
    assert SessionTarget().device_bytes() is None


@pytest.mark.parametrize("temperature", [0, 0.8])
def test_requests_run_through_the_loop_of_users_the_next_when_one_ends(fake, temperature):
    """At most two at a time: a warm-up of two, then three; this session runs them in fixed batches."""
    session = fake.FakeSession(prefill_ms=0, step_ms=1)
    target = SessionTarget(lambda directory, threads: session)
    target.open("anything", None)
    request = RunRequest(prompt=6, gen=4, batch=2, seed=3, warm_steps=1)
    ticks = target.generate(request, 3, temperature)
    assert [len(each) for each in ticks] == [5, 5, 5]
    assert all(each == sorted(each) for each in ticks)
    assert ticks[2][0] >= ticks[0][-1] > ticks[1][0] >= ticks[0][0]
    widths = [call[1:] for call in session.calls if call[0] == "forward"]
    assert widths == [(2, 6), (2, 1), (2, 1), (2, 6), *[(2, 1)] * 3, (1, 6), *[(1, 1)] * 3]
    with pytest.raises(EngineError, match="generate before open"):
        SessionTarget().generate(request, 3, 0)


def test_a_device_chooses_the_tokens_of_requests(device_target):
    target, session = device_target
    ticks = target.generate(RunRequest(prompt=5, gen=9, batch=3), 3, 0.7)
    assert [len(each) for each in ticks] == [10] * 3
    assert session.lengths.tolist() == [5 + 8] * 3


def test_a_request_for_generation_is_answered(fake, monkeypatch):
    session = fake.FakeSession(prefill_ms=0, step_ms=0)
    target = SessionTarget(lambda directory, threads: session)
    target.open("anything", None)
    fields = {"prompt": 3, "gen": 2, "batch": 1, "seed": 0, "warm_steps": 0, "requests": 2, "temperature": 0.0}
    answer = protocol._answer(target, {"command": "generate", **fields})
    assert [len(each) for each in answer["ticks"]] == [3, 3]
