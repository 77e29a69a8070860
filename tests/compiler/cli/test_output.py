"""Where words go: results to stdout, the rest to stderr, and logging as it was before."""

from __future__ import annotations

import io
import json
import logging
import os
import warnings
from collections.abc import Iterator

import pytest
import typer
from rich.table import Table

from llmc.compiler.base import processors
from llmc.compiler.base.errors import VerificationError
from llmc.compiler.cli import output as output_module
from llmc.compiler.cli.output import LIBRARIES, PIPE_WIDTH, Output, open_console

LOG = logging.getLogger("llmc.compiler.somewhere")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COLUMNS", "FORCE_COLOR", "TTY_COMPATIBLE"):
        monkeypatch.delenv(name, raising=False)


def show(output: Output) -> None:
    output.show(lambda: "a [table]", {"b": [1], "a": "ä"})


def test_a_result_is_a_table_or_one_json_document(capsys: pytest.CaptureFixture[str]) -> None:
    show(Output())
    assert capsys.readouterr() == ("a [table]\n", "")
    show(Output(quiet=True))
    assert capsys.readouterr() == ("a [table]\n", "")
    show(Output(json=True))
    shown = capsys.readouterr()
    assert (json.loads(shown.out), shown.err) == ({"b": [1], "a": "ä"}, "")
    assert shown.out.endswith("}\n")


@pytest.mark.parametrize(
    ("output", "shown"), [(Output(), "a [note]\n"), (Output(quiet=True), ""), (Output(json=True), "")]
)
def test_notes_are_for_people(capsys: pytest.CaptureFixture[str], output: Output, shown: str) -> None:
    output.note("a [note]")
    assert capsys.readouterr() == ("", shown)


@pytest.mark.parametrize(("quota", "threads"), [(None, None), (1.5, "1"), (3.0, "3"), (4.0, None), (9.0, None)])
def test_torch_has_no_more_threads_than_a_quota_lets_run(
    monkeypatch: pytest.MonkeyPatch, quota: float | None, threads: str | None
) -> None:
    for module in (output_module, processors):
        monkeypatch.setattr(module, "cgroup_cpu_quota", lambda: quota)
        monkeypatch.setattr(module, "usable_cpus", lambda: frozenset(range(4)))
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    monkeypatch.delenv("OMP_NUM_THREADS")
    with Output(quiet=True).working(measures=True):
        assert "OMP_NUM_THREADS" not in os.environ
    with Output(quiet=True).working():
        assert os.environ.get("OMP_NUM_THREADS") == threads
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    with Output(quiet=True).working():
        assert os.environ["OMP_NUM_THREADS"] == "7"


@pytest.mark.parametrize("output", [Output(), Output(json=True), Output(quiet=True)])
def test_a_failure_after_the_result_has_a_sentence_and_an_exit_code(
    capsys: pytest.CaptureFixture[str], output: Output
) -> None:
    with pytest.raises(typer.Exit) as raised:
        output.fail(VerificationError("out does not say what its model says"))
    assert raised.value.exit_code == 8
    assert capsys.readouterr() == ("", "llmc: error: out does not say what its model says\n")


def test_threads_of_torch_sleep_while_they_wait_unless_speed_is_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_WAIT_POLICY", "")
    monkeypatch.delenv("OMP_WAIT_POLICY")
    with Output(quiet=True).working(measures=True):
        assert "OMP_WAIT_POLICY" not in os.environ
    with Output(quiet=True).working():
        assert os.environ["OMP_WAIT_POLICY"] == "PASSIVE"
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    with Output(quiet=True).working():
        assert os.environ["OMP_WAIT_POLICY"] == "ACTIVE"


@pytest.mark.parametrize(
    ("output", "seen"),
    [
        (Output(), ["warning: odd [thing]", "error: wrong"]),
        (Output(json=True), ["warning: odd [thing]", "error: wrong"]),
        (Output(quiet=True), ["error: wrong"]),
        (Output(quiet=True, verbosity=2), ["error: wrong"]),
        (Output(verbosity=1), ["done", "warning: odd [thing]", "error: wrong"]),
        (Output(verbosity=2), ["detail", "done", "warning: odd [thing]", "error: wrong"]),
        (Output(verbosity=5), ["detail", "done", "warning: odd [thing]", "error: wrong"]),
    ],
)
def test_how_much_is_logged(capsys: pytest.CaptureFixture[str], output: Output, seen: list[str]) -> None:
    with output.working():
        LOG.debug("detail")
        LOG.info("done")
        LOG.warning("odd [thing]")
        LOG.error("wrong")
    assert capsys.readouterr() == ("", "".join(f"llmc: {line}\n" for line in seen))


def test_what_a_library_prints_is_no_result(capsys: pytest.CaptureFixture[str]) -> None:
    with Output(json=True).working():
        print("a stray line")
    assert capsys.readouterr() == ("", "a stray line\n")


@pytest.mark.parametrize(("verbosity", "shown"), [(0, False), (1, False), (2, True)])
def test_pythons_warnings_are_for_those_who_want_everything(
    capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture, verbosity: int, shown: bool
) -> None:
    """Neither here nor by a handler that a library gave the root."""
    with warnings.catch_warnings(), Output(verbosity=verbosity).working():
        warnings.simplefilter("always")
        warnings.warn("an old call", DeprecationWarning, stacklevel=1)
    assert ("an old call" in capsys.readouterr().err) == shown
    assert caplog.text == ""


@pytest.fixture
def loggers() -> Iterator[list[logging.Logger]]:
    """In a state that no command sets."""
    found = [logging.getLogger("llmc"), logging.getLogger("py.warnings")]
    before = [(log, log.level, log.propagate, log.disabled) for log in found]
    for log in found:
        log.setLevel(logging.CRITICAL)
        log.propagate = True
        log.disabled = False
    yield found
    for log, level, propagate, disabled in before:
        log.setLevel(level)
        log.propagate, log.disabled = propagate, disabled


@pytest.mark.parametrize("fails", [False, True])
@pytest.mark.parametrize("verbosity", [0, 2])
def test_logging_is_as_it_was_before(loggers: list[logging.Logger], verbosity: int, fails: bool) -> None:
    handlers = [list(log.handlers) for log in loggers]

    def work() -> None:
        with Output(verbosity=verbosity).working():
            assert loggers[0].level != logging.CRITICAL
            assert not loggers[0].propagate
            if fails:
                raise ValueError("wrong")

    if fails:
        with pytest.raises(ValueError, match="wrong"):
            work()
    else:
        work()
    assert [log.handlers for log in loggers] == handlers
    assert [(log.level, log.propagate, log.disabled) for log in loggers] == [(logging.CRITICAL, True, False)] * 2


def width_of(columns: str | None, monkeypatch: pytest.MonkeyPatch) -> int:
    if columns is not None:
        monkeypatch.setenv("COLUMNS", columns)
    return open_console(io.StringIO()).width


def test_tables_in_a_pipe_have_room_unless_the_user_says_how_much(monkeypatch: pytest.MonkeyPatch) -> None:
    assert width_of(None, monkeypatch) == PIPE_WIDTH
    assert width_of("70", monkeypatch) == 70


@pytest.mark.parametrize(("verbosity", "seen"), [(0, False), (1, False), (2, True)])
def test_what_libraries_log_for_programmers_is_not_for_users(
    monkeypatch: pytest.MonkeyPatch, verbosity: int, seen: bool
) -> None:
    records: list[logging.LogRecord] = []
    handler = logging.Handler()
    handler.emit = records.append  # type: ignore[method-assign]
    for name, variable in LIBRARIES.items():
        monkeypatch.setenv(variable, "")  # so that it is as it was before when the test ends
        monkeypatch.delenv(variable)
        log = logging.getLogger(name)
        monkeypatch.setattr(log, "level", logging.WARNING)
        monkeypatch.setattr(log, "_cache", {})
        monkeypatch.setattr(log, "handlers", [handler])
        with Output(verbosity=verbosity).working():
            log.warning("`pad_token_id` should be positive but got -1")
        assert (os.environ.get(variable) != "critical") == seen
    assert len(records) == (len(LIBRARIES) if seen else 0)


def test_text_from_outside_may_hold_brackets_and_colons() -> None:
    stream = io.StringIO()
    table = Table("name")
    table.add_row("[bold]layers[0] :smile:")
    open_console(stream).print(table)
    assert "[bold]layers[0] :smile:" in stream.getvalue()
