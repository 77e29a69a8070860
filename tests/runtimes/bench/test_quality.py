"""Where a subject's quality comes from, and what can be compared with what."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench import quality
from llmc.runtimes.bench.artifact_facts import artifact_facts
from llmc.runtimes.bench.quality import (
    BETTER,
    UNKNOWN,
    WORSE,
    SubjectQuality,
    evaluated_rows,
    quality_of,
    read_evaluations,
    recall,
    remember,
)


def made(label: str = "int4", **figures: Any) -> SubjectQuality:
    first = SubjectQuality(label, 0.05, 0.003, 20.5, 0.88, "a text", 512, 1020, "model", 19.8, "eval.json", "int4")
    return replace(first, **figures)


def document(*paths: Path | str, **row: Any) -> dict[str, Any]:
    """What ``llmc eval --json`` writes, but for figures that are not looked at."""
    rows = [
        {
            "label": Path(path).name,
            "path": str(path),
            "precision": "int4",
            "positions": 1020,
            "mean_kl": 0.05,
            "mean_kl_error": 0.003,
            "ppl": 20.5,
            "top1_agreement": 0.88,
            "bytes": 5,
            **row,
        }
        for path in paths
    ]
    return {
        "schema_version": 1,
        "text": {"name": "a text", "window": 512, "windows": 4, "positions": 1020, "first": 256, "bos": None},
        "reference": {"name": "model", "runtime": "transformers", "ppl": 19.8, "ppl_error": 0.4},
        "artifacts": rows,
    }


def test_a_row_has_its_path_and_its_figures(tmp_path: Path) -> None:
    assert evaluated_rows(document(tmp_path / "int4"), "eval.json") == [(tmp_path / "int4", made())]
    ((_, other),) = evaluated_rows(document("x", mean_kl_error=None, ppl=None, top1_agreement=None), "f")
    assert (other.mean_kl_error, other.ppl, other.top1_agreement) == (None, None, None)
    assert evaluated_rows(document("x", mean_kl=None), "f") == []


@pytest.mark.parametrize(
    "value", [{}, {"text": 1, "reference": {}, "artifacts": [{}]}, {**document("x"), "text": {}}]
)
def test_what_is_no_evaluation_is_refused(value: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=r"speed\.json is no report of an evaluation"):
        evaluated_rows({"artifacts": [{"mean_kl": 1}], **value}, "speed.json")


def test_files_and_folders_are_read(tmp_path: Path) -> None:
    folder = tmp_path / "evaluations"
    folder.mkdir()
    (folder / "a.json").write_text(json.dumps(document("one", "two")))
    (folder / "b.json").write_text('{"results": []}')
    (folder / "c.json").write_text(json.dumps(document("three")))
    assert [it.evaluated for _, it in read_evaluations([folder])] == ["one", "two", "three"]
    assert [it.source for _, it in read_evaluations([folder / "c.json"])] == [str(folder / "c.json")]
    with pytest.raises(UsageError, match="is no report of an evaluation"):
        read_evaluations([folder / "b.json"])


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no report of an evaluation"):
        read_evaluations([tmp_path])
    with pytest.raises(UsageError, match="cannot be read"):
        read_evaluations([tmp_path / "missing.json"])
    (tmp_path / "torn.json").write_text('{"text"')
    with pytest.raises(UsageError, match="cannot be read"):
        read_evaluations([tmp_path / "torn.json"])


def test_figures_are_kept_by_content(tmp_path: Path) -> None:
    model, copy, other = (tmp_path / name for name in ("model.bin", "copy.bin", "other.bin"))
    model.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    other.write_bytes(b"others")
    kept = tmp_path / "kept"
    remember(document(model, tmp_path / "missing", mean_kl=0.25), kept)
    facts = [artifact_facts(path) for path in (copy, other)]
    assert facts[0] is not None
    assert facts[1] is not None
    found = recall(facts[0].sha256, "int4", kept)
    assert found == made("model.bin", mean_kl=0.25, source=str(kept / f"{facts[0].sha256}.int4.json"))
    assert recall(facts[1].sha256, "int4", kept) is None
    remember(document(model, mean_kl=0.125), kept)
    again = recall(facts[0].sha256, "int4", kept)
    assert again is not None
    assert again.mean_kl == 0.125
    assert len(list(kept.iterdir())) == 1


def test_one_checkpoint_in_two_types_of_numbers_has_figures_of_both(tmp_path: Path) -> None:
    model, kept = tmp_path / "model.bin", tmp_path / "kept"
    model.write_bytes(b"weights")
    remember(document(model, precision="fp32", mean_kl=0.0), kept)
    remember(document(model, precision="../bf16", mean_kl=0.125), kept)
    facts = artifact_facts(model)
    assert facts is not None
    found = [recall(facts.sha256, precision, kept) for precision in ("fp32", "../bf16", "int8")]
    assert [each and each.mean_kl for each in found] == [0.0, 0.125, None]
    assert len(list(kept.iterdir())) == 2, "a name of numbers is no path"


def test_a_row_in_other_numbers_is_not_a_subjects(tmp_path: Path) -> None:
    rows = [(tmp_path, made("wide", precision="fp32", mean_kl=0.0)), (tmp_path, made("narrow", precision="bf16"))]
    assert quality_of("mine", tmp_path, "bf16", None, rows) == rows[1][1]
    assert quality_of("wide", tmp_path, "int8", None, rows) is None
    assert quality_of("mine", tmp_path, "int8", None, [(tmp_path, made(precision=""))]) == made(precision="")


def test_a_place_that_cannot_be_written_is_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "model.bin").write_bytes(b"weights")
    (tmp_path / "kept").write_text("a file")
    with caplog.at_level(logging.WARNING):
        remember(document(tmp_path / "model.bin"), tmp_path / "kept")
    assert "the quality of model.bin is not kept for benchmarks" in caplog.text


@pytest.mark.parametrize("text", ["[]", "{}", json.dumps(document("a", "b"))])
def test_what_is_damaged_is_not_taken(tmp_path: Path, caplog: pytest.LogCaptureFixture, text: str) -> None:
    (tmp_path / "ab.int4.json").write_text(text)
    with caplog.at_level(logging.WARNING):
        assert recall("ab", "int4", tmp_path) is None
    assert "is not what llmc eval wrote there" in caplog.text


def test_a_row_of_the_path_comes_before_one_of_the_name_and_both_before_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quality, "recall", lambda sha256, precision, folder: made("kept", source=sha256))
    by_name, by_path = (tmp_path / "x", made("mine")), (tmp_path / "engine", made("other"))
    assert quality_of("mine", tmp_path / "engine", "int4", "ab", [by_name, by_path]) == by_path[1]
    assert quality_of("mine", tmp_path / "elsewhere", "int4", "ab", [by_name, by_path]) == by_name[1]
    assert quality_of("new", tmp_path / "new", "int4", "ab", [by_name, by_path]) == made("kept", source="ab")
    assert quality_of("new", tmp_path / "new", "int4", None, [by_name, by_path]) is None


def test_losses_within_the_noise_are_equal() -> None:
    """The errors of 0.003 and 0.004 make one of 0.005."""
    other = made(mean_kl=0.040, mean_kl_error=0.004)
    assert made(mean_kl=0.0499).standing(other) == BETTER
    assert made(mean_kl=0.0501).standing(other) == WORSE
    assert made(mean_kl=0.01).standing(other) == BETTER
    assert made(mean_kl=0.0401, mean_kl_error=None).standing(replace(other, mean_kl_error=None)) == WORSE


@pytest.mark.parametrize(
    "change", [{"text": "b"}, {"window": 256}, {"positions": 9}, {"reference": "x"}, {"reference_ppl": 1.0}]
)
def test_other_positions_or_references_are_not_compared(change: dict[str, Any]) -> None:
    assert made().standing(made(**change)) == UNKNOWN
    assert made().comparable(made(evaluated="x", source="y", ppl=3.0))
