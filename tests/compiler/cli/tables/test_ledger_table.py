"""The ledger as a table."""

from __future__ import annotations

from rich.console import Console
from rich.text import Text

from llmc.compiler.artifact.ledger_report import LedgerEntry, LedgerFinding, LedgerReport
from llmc.compiler.cli.tables.ledger_table import ledger_table

NOTHING = LedgerEntry("Tidy", "exact up to rounding", 1e-12, 1.0, 2e-6, 0.0, 2 << 20, 30)
WRONG = LedgerEntry("Fuse", "exact up to rounding", 0.0123, 0.875, 0.5, 0.25, 1 << 20, 20)
UNMEASURED = LedgerEntry("Halve", "lowers floats", 0.0, 0.0, 0.0, 0.0, 1 << 20, 20, "no kernel")
REPORT = LedgerReport((NOTHING, WRONG, UNMEASURED, NOTHING), (LedgerFinding(1, ("Fuse",), "it moved a logit"),))


def test_a_row_has_what_was_measured() -> None:
    console = Console(width=140)
    with console.capture() as captured:
        console.print(ledger_table(REPORT))
    lines = captured.get().splitlines()
    for words in ("Fuse", "exact up to rounding", "0.0123", "87.5%", "0.5", "0.25", "1.0 MiB", "20"):
        assert words in next(line for line in lines if "Fuse" in line)
    unmeasured = next(line for line in lines if "Halve" in line)
    assert "not measured" in unmeasured
    assert "0.0%" not in unmeasured
    assert "not measured: no kernel" in captured.get()


def test_what_cost_too_much_is_red_and_what_did_nothing_dim() -> None:
    cells = list(ledger_table(REPORT).columns[0].cells)
    styles = [str(cell.style) for cell in cells if isinstance(cell, Text)]
    assert styles == ["dim", "bold red", "", "dim"]
