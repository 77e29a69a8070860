"""The driver of the table: what is measured, what is not measured again, what a user is told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, UsageError

from . import schemes as module
from .scheme_facts import Facts
from .schemes import parser, run
from .test_llama_perplexity import OUTPUT
from .test_scheme_table import bench

KL = {"int4": 0.05, "int8": 0.001, "Q4_0": 0.3, "Q8_0": 0.005}
SIZES = {"int4": 90, "int8": 142, "Q4_0": 92, "Q8_0": 145}
FASTER = {"int4": 1.0, "int8": 0.9, "Q4_0": 0.8, "Q8_0": 0.6}


class Programs:
    """Both commands, without running any: what was evaluated and what took turns."""

    def __init__(self) -> None:
        self.evaluated: list[str] = []
        self.turns: list[list[str]] = []
        self.options: list[Any] = []
        self.broken = ""
        self.digest = "0"
        self.warnings: list[str] = []

    def facts_of(self, path: Path) -> Facts:
        scheme = path.stem
        ours = scheme.startswith("int")
        name = f"{'llmc' if ours else 'llama.cpp'} {scheme}"
        size = SIZES[scheme] * 1_000_000
        return Facts(name, scheme, ours, str(path.resolve()), size, 135_000_000, 5.0, 4.5, f"{path}{self.digest}")

    def evaluate(self, engines: Any, peers: Any, model: str, *_: Any, **__: Any) -> Any:
        ((name, path),) = [*engines, *peers]
        if name == self.broken:
            raise EngineError("killed")
        self.evaluated.append(name)
        artifact = {"path": str(path), "mean_kl": KL[name], "kl_p99": 0.5, "top1_agreement": 0.9, "ppl": 42.0}
        text = {"positions": 100}
        return SimpleNamespace(
            to_json=lambda: {"text": text, "reference": {"ppl": 40.0}, "artifacts": [{**artifact, "bytes": 1}]}
        )

    def subjects_of(self, engines: list[Path], peers: list[str]) -> list[str]:
        return [*map(str, engines), *peers]

    def run_benchmark(self, subjects: list[str], cases: Any, options: Any, *, progress: Any) -> Any:
        paths = [subject.rpartition(":")[2] for subject in subjects]
        self.turns.append(subjects)
        self.options.append((cases, options))
        ratios = {path: [1 / FASTER[Path(path).stem]] for path in paths[1:]}
        found = bench(dict.fromkeys(paths, 100.0), ratios, cases[0].prompt)
        for subject, path in zip(found["subjects"], paths, strict=True):
            subject["path"] = path
        return SimpleNamespace(to_json=lambda: {**found, "warnings": self.warnings})


@pytest.fixture
def programs(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Programs:
    made = Programs()
    for name in ("facts_of", "evaluate", "subjects_of", "run_benchmark"):
        monkeypatch.setattr(module, name, getattr(made, name))
    monkeypatch.setattr(module, "logits_peers", lambda peers: [(Path(p).stem, p.rpartition(":")[2]) for p in peers])
    monkeypatch.chdir(tmp_path)
    return made


ROWS = ("int4", "int8", "Q4_0.gguf", "Q8_0.gguf")


def main(*arguments: str, rows: tuple[str, ...] = ROWS) -> int:
    given = [*rows, "--reference", "m", "--results", "r", "--peer-python", "python", *arguments]
    return run(parser().parse_args(given))


def test_everything_is_measured_once(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--repeats", "2", "--output", "t.md") == 0
    assert programs.evaluated == ["int4", "int8", "Q4_0", "Q8_0"]
    here = Path.cwd()
    peers = [f"llamacpp-python=python:{here / name}" for name in ROWS[2:]]
    assert programs.turns == [[str(here / "int4"), str(here / "int8"), *peers]] * 2
    ((case,), options), _ = programs.options
    assert (case.prompt, case.gen, case.batch, options.threads, options.measure_memory) == (128, 128, 1, 2, False)
    shown = capsys.readouterr().out
    assert "| **llmc int4** | 90.0 |" in shown
    assert "holds of: llmc int8, llmc int4" in shown
    assert Path("t.md").read_text() in shown
    assert main("--repeats", "2") == 0
    assert (len(programs.evaluated), len(programs.turns)) == (4, 2)


def test_an_interrupted_run_goes_on(programs: Programs) -> None:
    programs.broken = "Q4_0"
    with pytest.raises(EngineError):
        main("--repeats", "1")
    assert programs.evaluated == ["int4", "int8"]
    programs.broken = ""
    assert main("--repeats", "1") == 0
    assert programs.evaluated == ["int4", "int8", "Q4_0", "Q8_0"]
    assert main("--repeats", "3") == 0
    assert len(programs.turns) == 3, "only the two that were missing"


@pytest.mark.parametrize("arguments", [("--tokens", "600"), ("--text", "other.txt")])
def test_what_is_asked_otherwise_is_evaluated_anew(programs: Programs, arguments: tuple[str, ...]) -> None:
    main("--repeats", "1")
    main("--repeats", "1", *arguments)
    assert (len(programs.evaluated), len(programs.turns)) == (8, 1)


def test_what_changed_is_measured_anew(programs: Programs) -> None:
    main("--repeats", "1")
    programs.digest = "1"
    main("--repeats", "1")
    assert (len(programs.evaluated), len(programs.turns)) == (8, 2)
    main("--repeats", "1", "--runs", "2")
    assert (len(programs.evaluated), len(programs.turns)) == (8, 3)


def test_rows_that_do_not_fit_together_take_turns_with_the_base(programs: Programs) -> None:
    assert main("--repeats", "1", "--at-once", "2", "--base", "int8", "--variant", "flash attention") == 0
    names = [[Path(subject.rpartition(":")[2]).stem for subject in each] for each in programs.turns]
    assert names == [["int8", "int4", "Q4_0"], ["int8", "Q8_0"]]
    assert programs.turns[1][1].startswith("llamacpp-python/flash attention=python:")


def test_a_second_geometry_is_timed_and_not_evaluated(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    second = [f"large/{name}" for name in ROWS]
    assert main("--repeats", "1", "--second", *second, "--second-name", "1B") == 0
    assert len(programs.evaluated) == 4
    assert [Path(turn[0]).parent.name for turn in programs.turns] == [Path.cwd().name, "large"]
    shown = capsys.readouterr().out
    assert "decode tok/s, 1B (ratio to llmc int4) | MB, 1B |" in shown
    assert "| 100.0 (0.80) | 100.0 (0.80) | 92 |" in shown


def test_what_does_not_hold_ends_with_1(
    programs: Programs, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FASTER, "Q8_0", 1.2)
    assert main("--repeats", "1") == 1
    shown = capsys.readouterr().out
    assert "does not hold: llama.cpp Q8_0 has a lower KL than llmc int4" in shown
    assert "decodes 1.20 times as fast at 135M" in shown
    assert "holds of: llmc int8" in shown


def test_nothing_is_measured_where_that_is_asked(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("--measure") == 1
    assert programs.evaluated == programs.turns == []
    assert "not known: llmc int4 and llama.cpp Q4_0: the KL of llmc int4" in capsys.readouterr().out
    main("--measure", "speed", "--repeats", "1")
    assert programs.evaluated == []
    assert len(programs.turns) == 1


def test_a_disturbed_benchmark_is_named(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    programs.warnings = ["others used 30 %"]
    main("--repeats", "1")
    assert "others used 30 %" in capsys.readouterr().err


def test_logs_of_llama_perplexity(programs: Programs, capsys: pytest.CaptureFixture[str]) -> None:
    """40 is the reference's perplexity; the log's is 19.78."""
    Path("q.log").write_text(OUTPUT)
    with pytest.raises(UsageError, match=r"Q4_0\.gguf was measured on another text"):
        main("--repeats", "1", "--log", "Q4_0.gguf=q.log")
    text = OUTPUT.replace("PPL(Q)                   :  20.776102", "PPL(Q)                   :  42.020080")
    Path("q.log").write_text(text)
    main("--repeats", "1", "--log", "Q4_0.gguf=q.log")
    assert "Q4_0" not in programs.evaluated
    assert "| llama.cpp Q4_0 | 92.0 | 5.00 | 4.50 | 0.0457 | 0.220 | 87.8 % | 42.02 |" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("log", "message"),
    [("Q4_0.gguf", "it is GGUF=LOG"), ("Q5_0.gguf=q.log", "none of the rows"), ("Q4_0.gguf=q.log", "cannot be read")],
)
def test_logs_that_are_none(programs: Programs, log: str, message: str) -> None:
    Path("q.log").write_text("no figures")
    with pytest.raises(UsageError, match=message):
        main("--repeats", "1", "--log", log)


def test_reports_of_before_are_taken(programs: Programs) -> None:
    main("--repeats", "1", rows=("int4", "Q8_0.gguf"))
    (path,) = Path("r").glob("quality-int4-*")
    report = json.loads(path.read_text())
    report["artifacts"][0] |= {"path": "int4", "bytes": 90_000_000}
    Path("report.json").write_text(json.dumps(report))
    path.unlink()
    assert main("--repeats", "1", "--quality", "report.json", rows=("int4", "Q8_0.gguf")) == 0
    assert programs.evaluated == ["int4", "Q8_0"]
    report["artifacts"][0]["bytes"] = 91_000_000
    Path("report.json").write_text(json.dumps(report))
    with pytest.raises(UsageError, match="had 91000000 when it was evaluated"):
        main("--repeats", "1", "--quality", "report.json", rows=("int4", "Q8_0.gguf"))


def test_bases_and_interpreters_that_are_missing(programs: Programs) -> None:
    with pytest.raises(UsageError, match="int2 is none of the engines"):
        main("--base", "int2")
    with pytest.raises(UsageError, match="name its interpreter with --peer-python"):
        run(parser().parse_args(["int4", "Q8_0.gguf", "--reference", "m", "--results", "r"]))
