"""What a ledger's findings say."""

from __future__ import annotations

import json
import math

import pytest

from llmc.compiler.artifact.ledger_report import LedgerEntry, LedgerError, LedgerFinding, LedgerReport

ENTRY = LedgerEntry("Fuse", "exact up to rounding", math.inf, 0.5, 0.25, 0.125, 1000, 7)
FINDING = LedgerFinding(0, ("Fuse",), "it moved a logit", ("layers.1/MatMul",), "linear", "out.repro/00_fuse")


@pytest.mark.parametrize(
    ("nodes", "where"),
    [
        (("a",), "at a"),
        (("a", "b"), "between a, b"),
        ((), "and no node alone does that"),
    ],
)
def test_a_sentence_says_pass_and_place(nodes: tuple[str, ...], where: str) -> None:
    finding = LedgerFinding(3, ("First", "Second"), "it moved a logit", nodes)
    assert finding.sentence == f"First … Second: it moved a logit, {where}"


def test_an_error_says_what_to_run() -> None:
    error = LedgerError(LedgerReport((ENTRY,), (FINDING,)))
    assert error.exit_code == 8
    assert str(error) == (
        "Fuse: it moved a logit, at layers.1/MatMul; run 'python out.repro/00_fuse/repro.py' to see it; "
        "no graph was written"
    )


def test_an_error_counts_the_others() -> None:
    other = LedgerFinding(2, ("Pack",), "it moved a logit")
    error = LedgerError(LedgerReport((ENTRY,), (other, FINDING, FINDING)))
    assert str(error) == "Pack: it moved a logit, and no node alone does that (and 2 more); no graph was written"


def test_json_has_no_infinities() -> None:
    value = LedgerReport((ENTRY,), (FINDING,)).to_json()
    assert json.loads(json.dumps(value, allow_nan=False)) == {
        "passes": [
            {
                "name": "Fuse",
                "declared": "exact up to rounding",
                "kl": None,
                "top1": 0.5,
                "logit_error": 0.25,
                "step": 0.125,
                "bytes": 1000,
                "nodes": 7,
                "unmeasured": "",
            }
        ],
        "findings": [
            {
                "place": 0,
                "passes": ["Fuse"],
                "reason": "it moved a logit",
                "nodes": ["layers.1/MatMul"],
                "value": "linear",
                "reproduction": "out.repro/00_fuse",
            }
        ],
    }
