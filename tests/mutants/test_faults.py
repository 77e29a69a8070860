"""The lists are true of the sources: faults can be planted, each test that must notice exists."""

from __future__ import annotations

import ast
import io
import shutil
from pathlib import Path

import pytest
from rich.console import Console

from .faults import ROOT, Fault, load_faults
from .mechanical import Mutant, load_table
from .plant import Outcome, _status
from .run import Results, chosen_faults, summary

FAULTS = load_faults()
STALE = 0.05
"""Share of the faults that may be stale."""


def functions_of(path: Path) -> set[str]:
    return {node.name for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if hasattr(node, "name")}


def test_few_faults_are_stale() -> None:
    """Edits take the texts of some away; when they are more, somebody sees to the lists."""
    stale = [reason for fault in FAULTS if (reason := fault.stale(ROOT))]
    assert len(stale) <= STALE * len(FAULTS), "\n".join(stale)


@pytest.mark.parametrize("source", sorted({fault.source for fault in FAULTS}))
def test_every_fault_is_python(source: str) -> None:
    """Else any test would notice it."""
    for fault in (fault for fault in FAULTS if fault.source == source and fault.file.endswith(".py")):
        if not fault.stale(ROOT):
            ast.parse((ROOT / fault.file).read_text(encoding="utf-8").replace(fault.old, fault.new))


def test_every_test_exists() -> None:
    functions: dict[Path, set[str]] = {}
    for fault in FAULTS:
        for test in fault.tests:
            path, _, name = test.partition("::")
            assert (ROOT / path).exists(), f"{fault.name}: {test}"
            if name:
                known = functions.setdefault(ROOT / path, functions_of(ROOT / path))
                assert name.partition("[")[0].rpartition("::")[2] in known, f"{fault.name}: {test}"


def test_files_that_mutmut_changes_and_their_tests_exist() -> None:
    targets, accepted = load_table()
    for target in targets:
        for path in (target.file, *target.tests):
            assert (ROOT / path).is_file(), path
    for change in accepted:
        assert change.file in {target.file for target in targets}
        assert change.why
        lines = [line.strip() for line in (ROOT / change.file).read_text(encoding="utf-8").splitlines()]
        assert all(line in lines for line in change.old.splitlines()), change


def test_a_fault_is_planted_once(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1\ny = 1\n")
    fault = Fault("list", "a.py", "x is 2", "x = 1", "x = 2", ("tests",))
    assert fault.plant(tmp_path) == "x = 1\ny = 1\n"
    assert (tmp_path / "a.py").read_text() == "x = 2\ny = 1\n"
    with pytest.raises(ValueError, match=r"faults/list\.toml, a\.py: x is 2: its text stands there 0 times"):
        fault.plant(tmp_path)
    (tmp_path / "a.py").write_text("x = 1\nx = 1\n")
    assert fault.stale(tmp_path) == "faults/list.toml, a.py: x is 2: its text stands there 2 times"
    (tmp_path / "a.py").unlink()
    assert fault.stale(tmp_path) == "faults/list.toml, a.py: x is 2: there is no such file"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ('new = "a"', "it changes nothing"),
        ('new = "b"\nfile2 = "c"', "file2"),
        ("", "new"),
    ],
)
def test_a_table_that_is_no_fault(tmp_path: Path, line: str, said: str) -> None:
    text = f'[[fault]]\nfile = "f.py"\nfault = "wrong"\nold = "a"\ntests = ["t"]\n{line}\n'
    (tmp_path / "list.toml").write_text(text)
    with pytest.raises(ValueError, match=said):
        load_faults(folder=tmp_path)


def test_two_faults_of_one_name(tmp_path: Path) -> None:
    text = '[[fault]]\nfile = "f.py"\nfault = "wrong"\nold = "a"\nnew = "b"\ntests = ["t"]\n'
    (tmp_path / "one.toml").write_text(text)
    shutil.copy(tmp_path / "one.toml", tmp_path / "two.toml")
    with pytest.raises(ValueError, match=r"two faults of one name: f\.py: wrong"):
        load_faults(folder=tmp_path)


def test_a_sample_is_the_same_each_time_and_a_name_takes_all() -> None:
    sample = chosen_faults([], everything=False, per_list=1)
    assert sample == chosen_faults([], everything=False, per_list=1)
    assert [fault.source for fault in sample] == sorted({fault.source for fault in FAULTS})
    assert chosen_faults([], everything=True, per_list=1) == list(FAULTS)
    named = chosen_faults(["verification"], everything=False, per_list=1)
    assert [f for f in FAULTS if f.source == "verification"] == [f for f in named if f.source == "verification"]


@pytest.mark.parametrize(
    ("code", "said", "status"),
    [
        (0, "3 passed", "survived"),
        (1, "FAILED tests/test_a.py::test_b", "killed"),
        (2, "ERROR tests/test_a.py", "killed"),
        (-11, "", "killed"),
        (None, "", "timeout"),
        (1, "Traceback of what was to run the tests", "broken"),
        (4, "ERROR: not found", "broken"),
        (5, "no tests ran", "broken"),
    ],
)
def test_what_an_exit_code_means(code: int | None, said: str, status: str) -> None:
    assert _status(code, said) == status


def fault(survives: str = "") -> Fault:
    return Fault("list", "f.py", "wrong", "a", "b", ("t",), survives)


def mutants(noticed: int, survived: int, rest: str = "survived") -> list[Mutant]:
    statuses = ["killed"] * noticed + [rest] * survived
    return [Mutant(f"m{number}", "f.py", status) for number, status in enumerate(statuses)]


@pytest.mark.parametrize(
    ("results", "failed"),
    [
        (Results([Outcome(fault(), "killed", 1.0), Outcome(fault(), "timeout", 1.0)]), False),
        (Results([Outcome(fault(), "killed", 1.0), Outcome(fault(), "survived", 1.0)]), True),
        (Results([Outcome(fault("equivalent"), "survived", 1.0)]), False),
        (Results([Outcome(fault(), "broken", 1.0)]), True),
        (Results([Outcome(fault(), "stale", 0.0)]), True),
        (Results(mutants=mutants(9, 1)), False),
        (Results(mutants=mutants(8, 1)), True),
        (Results(mutants=mutants(99, 1, "no tests")), True),
    ],
)
def test_what_fails_a_run(results: Results, failed: bool) -> None:
    assert results.failed is failed


def test_the_table_shows_code_as_it_is() -> None:
    """Brackets are no markup; each that was not noticed has a line."""
    left = [Mutant(f"m{n}", "f.py", "survived", "row[position]", f"row[{n}]", "equivalent") for n in range(2)]
    console = Console(width=160, file=io.StringIO())
    console.print(summary(Results([Outcome(fault(), "killed", 1.0)], [*mutants(3, 0), *left])))
    assert isinstance(console.file, io.StringIO)
    lines = [line.split() for line in console.file.getvalue().splitlines()]
    assert lines[1] == ["f.py", "1/1", "3/5", "`row[position]`", "->", "`row[0]`:", "equivalent"]
    assert lines[2] == ["`row[position]`", "->", "`row[1]`:", "equivalent"]
    assert lines[3] == ["all", "1/1", "3/5"]
