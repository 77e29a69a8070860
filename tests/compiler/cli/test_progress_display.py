"""Progress on a terminal and in a log."""

from __future__ import annotations

import io
import logging

import pytest
from rich.console import Console

from llmc.compiler.cli.progress_display import BarDisplay, LogDisplay, amount, remaining


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (999, "bytes", "999 bytes"),
        (1000, "bytes", "1.0 kB"),
        (999_900, "bytes", "999.9 kB"),
        (1e6, "bytes", "1.0 MB"),
        (2_500_000, "bytes", "2.5 MB"),
        (7e9, "bytes", "7.00 GB"),
        (3, "passes", "3 passes"),
        (3, "", "3"),
    ],
)
def test_amount(value: float, unit: str, text: str) -> None:
    assert amount(value, unit) == text


def test_remaining() -> None:
    assert remaining(20, 10, 100) == "3:00 left"
    assert remaining(61, 10, 1000) == "1:40:39 left"
    # Too early, too little, of unknown length, done.
    assert [remaining(*case) for case in ((9, 5, 10), (90, 0, 10), (None, 5, 10), (90, 5, None), (90, 10, 10))] == [
        ""
    ] * 5


def draw() -> tuple[BarDisplay, io.StringIO]:
    screen = io.StringIO()
    return BarDisplay(Console(file=screen, force_terminal=True, width=100, markup=False)), screen


def test_each_stage_keeps_its_line() -> None:
    display, screen = draw()
    with display:
        display.start("Tracing [graph]")
        display.start("Writing weights", 4_000_000, "bytes")
        display.advance(1_000_000)
        display.start("Optimizing", 20, "passes")
        display.advance(20)
    last = screen.getvalue().rpartition("Tracing [graph]")[2]
    assert "Writing weights" in last
    assert "4.0 MB" in last
    assert "20 passes" in last
    assert "✓" in screen.getvalue()


def test_a_stage_that_failed_gets_no_tick() -> None:
    display, screen = draw()

    def fail() -> None:
        with display:
            display.start("Tracing")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert "✓" not in screen.getvalue()
    assert not display._bars.live.is_started, "the terminal is given back"


def test_a_stage_that_failed_is_not_logged_as_done(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmc")
    logging.getLogger("llmc").propagate = True

    def fail() -> None:
        with LogDisplay() as display:
            display.start("Tracing")
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011
        fail()
    assert caplog.messages == ["Tracing"]


def test_steps_rename_one_line() -> None:
    display, screen = draw()
    with display:
        display.step("warm-up", 1, 2)
        display.step("run 1", 2, 2)
        assert len(display._bars.tasks) == 1
        assert (display._bars.tasks[0].completed, display._bars.tasks[0].total) == (1, 2), "the second only begins"
    assert "run 1" in screen.getvalue()


def test_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llmc")
    logging.getLogger("llmc").propagate = True
    with LogDisplay() as display:
        display.start("Tracing")
        display.start("Optimizing", 20, "passes")
        display.step("run 1", 2, 9)
    begun, ended, second, step, last = caplog.messages
    assert begun == "Tracing"
    assert ended.startswith("Tracing: done in ")
    assert second == "Optimizing (20 passes)"
    assert step == "2/9: run 1"
    assert last.startswith("Optimizing: done in ")
