"""cost: reports beside each other, at their own prices or others."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

from typer.testing import Result

from llmc.compiler.base.errors import UsageError

RECORDED = Path(__file__).parents[4] / "docs" / "bench"
Run = Callable[..., Result]
CPU, OTHER = RECORDED / "smollm2-int4-openvino.json", RECORDED / "smollm2-int4-llamacpp.json"


def test_two_reports(llmc: Run) -> None:
    shown = llmc("cost", CPU, OTHER, "--price", "1/h")
    assert shown.exit_code == 0, shown.stderr
    for words in ("times the cheapest", "1M out", "ov-int4", "1.00"):
        assert words in shown.stdout


def test_as_json_with_a_price_each(llmc: Run) -> None:
    rows = json.loads(llmc("cost", CPU, OTHER, "--price", "1 EUR/h", "--price", "24 EUR/d", "--json").stdout)["costs"]
    assert {(row["source"], row["price"]["text"]) for row in rows} == {
        (CPU.name, "1 EUR/h"),
        (OTHER.name, "24 EUR/d"),
    }
    assert rows[0]["times"] == 1.0
    twice = json.loads(llmc("cost", CPU, CPU, "--price", "1/h", "--json").stdout)["costs"]
    assert {row["source"] for row in twice} == {str(CPU)}


def test_what_is_refused(llmc: Run, tmp_path: Path) -> None:
    for arguments, words in [
        ((CPU,), "was made without a price"),
        ((CPU, "--price", "1/year"), "is no price"),
        ((CPU, OTHER, "--price", "1/h", "--price", "2/h", "--price", "3/h"), "3 prices for 2 reports"),
        ((CPU, OTHER, "--price", "1 EUR/h", "--price", "1 USD/h"), "one currency"),
        ((tmp_path / "none.json", "--price", "1/h"), "cannot be read"),
    ]:
        refused = llmc("cost", *arguments)
        assert refused.exit_code == UsageError.exit_code
        assert words in refused.stderr
