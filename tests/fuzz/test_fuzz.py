"""A sample of the changed inputs, and that the judge of their endings sees what is wrong."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .cases import KINDS, Kind, write_case
from .mutations import change_body, change_bytes, change_header, change_json
from .run import Outcome, table
from .trial import Ending, _faults

ROOT = Path(__file__).parents[2]


@pytest.mark.timeout(1800)
def test_a_sample_of_changed_inputs_is_refused_in_a_sentence_or_works() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.fuzz.run", "--count", "30", "--processes", "1", "--minutes", "25"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "\n30 of 30 cases" in result.stdout


@pytest.mark.parametrize("change", [change_bytes, change_json])
def test_the_same_generator_gives_the_same_change(change: object) -> None:
    data = json.dumps({"a": 1, "b": [1, 2, {"c": "d"}], "e": True}).encode()
    changed = [change(random.Random(seed), data) for seed in range(200)]  # type: ignore[operator]
    assert changed == [change(random.Random(seed), data) for seed in range(200)]  # type: ignore[operator]
    assert sum(item != data for item in changed) > 190
    assert len(set(changed)) > 100


def test_changes_of_safetensors_stay_in_their_part() -> None:
    header, body = json.dumps({"w": {"dtype": "F32", "shape": [40], "data_offsets": [0, 160]}}).encode(), bytes(160)
    data = struct.pack("<Q", len(header)) + header + body
    for seed in range(100):
        assert change_header(random.Random(seed), data).endswith(body)
        changed = change_body(random.Random(seed), data)
        assert changed.startswith(data[: 8 + len(header)])
    assert any(change_body(random.Random(seed), data) != data for seed in range(10))


def test_cases_are_told_by_their_number(tmp_path: Path) -> None:
    for name, file in (("checkpoint", "config.json"), ("portable", "llmc.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text(json.dumps({"x": 1, "files": {}}))
    numbers = {kind.name: index for index, kind in enumerate(KINDS)}
    for name, file in (("configurations", "config.json"), ("manifests", "llmc.json")):
        texts, commands = [], []
        for trial in range(2):
            folder = tmp_path / f"{name}-{trial}"
            folder.mkdir()
            case = write_case(tmp_path, folder, 5, numbers[name] + len(KINDS))
            texts.append((folder / "in" / file).read_bytes())
            commands.append(case.arguments)
            assert (case.kind.name, case.file) == (name, file)
            assert "in" in case.arguments
        assert texts[0] == texts[1]
        assert commands[0] == commands[1]


SENTENCE = "llmc: error: no.\n"


@pytest.mark.parametrize(
    ("code", "error", "files", "faults"),
    [
        (0, "", ["out"], []),
        (3, SENTENCE, [], []),
        (3, "llmc: warning: x\n" + SENTENCE, [], []),
        (3, "", [], ["not one sentence"]),
        (3, SENTENCE * 2, [], ["not one sentence"]),
        (70, SENTENCE, [], ["unexpected error"]),
        (99, "Traceback (most recent call last):\n", [], ["another exit code", "traceback"]),
        (0, "Traceback (most recent call last):\n", ["out"], ["traceback"]),
        (-11, "", [], ["killed by a signal"]),
        (-24, "", [".out.1.partial"], ["too long"]),
        (-9, "", [], ["too long"]),
        (3, SENTENCE, ["out"], ["half written"]),
        (0, "", [], ["half written"]),
        (3, SENTENCE, [".out.1.partial"], ["half written"]),
    ],
)
def test_endings_are_judged(tmp_path: Path, code: int, error: str, files: list[str], faults: list[str]) -> None:
    for name in ("in", "stdout.txt", *files):
        (tmp_path / name).mkdir()
    assert _faults(code, error, tmp_path, makes=True) == faults


CHILD = """
import sys, time, json
from pathlib import Path
from tests.fuzz import trial

trial.LONGEST, trial.WALL = 1, 3
def spin():
    while True: pass
def fail():
    raise KeyError("x")
def leave():
    print("said"); raise SystemExit(5)
works = {"spin": spin, "sleep": lambda: time.sleep(60), "fail": fail, "leave": leave, "pass": lambda: None}
folder = Path(sys.argv[1])
print(json.dumps({name: trial.run_child(work, folder)[0] for name, work in works.items()}))
print((folder / "stdout.txt").read_text() == "")
"""


def test_children_that_do_not_end_are_ended(tmp_path: Path) -> None:
    began = time.monotonic()
    result = subprocess.run(
        [sys.executable, "-c", CHILD, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, timeout=100
    )
    codes = json.loads(result.stdout.splitlines()[0])
    assert codes["spin"] in (-24, -9)
    assert (codes["sleep"], codes["fail"], codes["leave"], codes["pass"]) == (-9, 99, 5, 0)
    assert time.monotonic() - began < 60


def test_table_of_outcomes() -> None:
    def outcome(kind: Kind, *faults: str, code: int = 0) -> Outcome:
        return Outcome(0, kind.name, "", "", Ending(code, "", 1.0, faults))

    some = [outcome(KINDS[0]), outcome(KINDS[0], code=3), outcome(KINDS[1], code=3)]
    assert table(some).splitlines() == [
        "| what was changed | cases | done | refused in one sentence | anything else |",
        "|---|--:|--:|--:|--:|",
        f"| {KINDS[0].name} | 2 | 1 | 1 | 0 |",
        f"| {KINDS[1].name} | 1 | 0 | 1 | 0 |",
        "| all | 3 | 1 | 2 | 0 |",
    ]
    assert "| all | 4 | 1 | 2 | 1 |" in table([*some, outcome(KINDS[2], "traceback", code=70)])
