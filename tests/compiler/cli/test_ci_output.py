"""Files and lines for continuous integration, also where a command fails."""

from __future__ import annotations

import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from xml.etree import ElementTree

import pytest

from llmc.compiler.base.errors import EngineError, MachineError, UsageError
from llmc.compiler.ci.suite import Suite, Verdict
from llmc.compiler.cli import ci_output
from llmc.compiler.cli.ci_output import CiOutput


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


SUITE = Suite("llmc verify", "engine", (Verdict("a", "failed", "2", "1", "no"),))


def test_all_three(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = CiOutput(tmp_path / "new" / "junit.xml", tmp_path / "summary.md", annotations=True)
    with told.recording("llmc verify", "engine") as recording:
        recording.suite = SUITE
    (suite,) = ElementTree.parse(tmp_path / "new" / "junit.xml").getroot()
    assert (suite.get("failures"), float(suite.get("time", -1)) >= 0) == ("1", True)
    assert "### llmc verify: engine" in (tmp_path / "summary.md").read_text()
    said = capsys.readouterr()
    assert (said.out, said.err) == ("", "::error title=llmc verify%3A a::engine: 2, limit 1; no\n")
    assert names(tmp_path / "new") == ["junit.xml"]


def test_a_summary_is_appended_and_a_junit_file_replaced(tmp_path: Path) -> None:
    told = CiOutput(tmp_path / "junit.xml", tmp_path / "summary.md")
    for _ in range(2):
        with told.recording("llmc verify", "engine") as recording:
            recording.suite = SUITE
    assert (tmp_path / "summary.md").read_text().count("### llmc verify") == 2
    assert len(ElementTree.parse(tmp_path / "junit.xml").getroot()) == 1


def test_the_time_is_that_of_the_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moments = iter([100.0, 3700.0])
    monkeypatch.setattr(ci_output.time, "monotonic", lambda: next(moments))
    with CiOutput(tmp_path / "junit.xml").recording("llmc verify", "engine") as recording:
        recording.suite = SUITE
    (suite,) = ElementTree.parse(tmp_path / "junit.xml").getroot()
    begin = datetime.fromisoformat(suite.get("timestamp", "") + "+00:00")
    assert suite.get("time") == "3600.000"
    assert 3590 < (datetime.now(UTC) - begin).total_seconds() < 3700


def test_nothing_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with CiOutput().recording("llmc verify", "engine") as recording:
        recording.suite = SUITE
    assert names(tmp_path) == []
    assert capsys.readouterr().err == ""


def test_an_error_is_a_suite_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    told = CiOutput(tmp_path / "junit.xml", annotations=True)
    with pytest.raises(EngineError), told.recording("llmc verify", "engine"):
        raise EngineError("it does not open")
    (error,) = ElementTree.parse(tmp_path / "junit.xml").getroot().iter("error")
    assert error.get("message") == "it does not open"
    assert capsys.readouterr().err == "::error title=llmc verify%3A EngineError::engine: it does not open\n"


@pytest.mark.parametrize("option", ["junit", "summary"])
@pytest.mark.parametrize("place", ["folder", "file/below"])
def test_a_file_that_cannot_be_written_is_said_before_the_work(tmp_path: Path, option: str, place: str) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    told = CiOutput(**{option: tmp_path / place})  # type: ignore[arg-type]
    with (
        pytest.raises(UsageError, match=r"is a directory|cannot be written"),
        told.recording("llmc verify", "engine"),
    ):
        pytest.fail("the work began")
    assert names(tmp_path) == ["file", "folder"]


def record_into_what_became_a_folder(path: Path, error: Exception | None) -> None:
    with CiOutput(path).recording("llmc verify", "engine") as recording:
        path.mkdir()
        recording.suite = SUITE
        if error is not None:
            raise error


def test_a_file_that_can_no_longer_be_written(tmp_path: Path) -> None:
    with pytest.raises(MachineError, match=r"junit\.xml cannot be written"):
        record_into_what_became_a_folder(tmp_path / "junit.xml", None)
    assert names(tmp_path) == ["junit.xml"]
    with pytest.raises(EngineError, match="the first error counts"):
        record_into_what_became_a_folder(tmp_path / "other.xml", EngineError("the first error counts"))


def test_a_summary_that_can_no_longer_be_written() -> None:
    with pytest.raises(MachineError, match="/dev/full cannot be written"):
        record_into(CiOutput(summary=Path("/dev/full")))


def record_into(told: CiOutput) -> None:
    with told.recording("llmc verify", "engine") as recording:
        recording.suite = SUITE


def test_a_device_is_written_as_it_is(tmp_path: Path) -> None:
    with CiOutput(Path("/dev/null")).recording("llmc verify", "engine") as recording:
        recording.suite = SUITE
    assert Path("/dev/null").is_char_device()


def test_a_summary_may_be_a_pipe_with_a_reader(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llmc.compiler.base.whole_file.READER_SECONDS", 0.1)
    pipe, got = tmp_path / "pipe", list[str]()
    os.mkfifo(pipe)
    with pytest.raises(MachineError, match="nobody reads the pipe"):
        record_into(CiOutput(summary=pipe))
    reader = threading.Thread(target=lambda: got.append(pipe.read_text()))
    reader.start()
    record_into(CiOutput(summary=pipe))
    reader.join()
    assert got[0].startswith("#")
