"""Qualities stand at the subjects, fair comparisons before others, and a fast loss is called one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from llmc.runtimes.bench.options import BenchOptions
from llmc.runtimes.bench.quality import BETTER, UNKNOWN, WORSE
from llmc.runtimes.bench.quality_plan import QualityPlan
from llmc.runtimes.bench.report import comparison_table, results_table, standing_text, text_comparison_table
from llmc.runtimes.bench.results import BenchReport
from llmc.runtimes.bench.rounds import Steps
from llmc.runtimes.bench.text_mode import TextComparison

from .office import A
from .reports import make_report
from .test_quality import made
from .test_report import cells


def graded(tmp_path: Path, **losses: float) -> BenchReport:
    """Mine beside a worse, a better and an unknown other."""
    report = make_report()
    (first,), (mine, other) = report.comparisons, report.subjects
    names = ("unknown", "better", "other")
    report = replace(
        report,
        subjects=(mine, *(replace(other, label=name) for name in names)),
        comparisons=tuple(replace(first, denominator=name) for name in names),
    )
    rows = tuple((tmp_path / name, made(name, mean_kl=loss)) for name, loss in losses.items())
    return QualityPlan(rows, tmp_path).extended(report, [A], Steps(0, None))


def test_comparisons_at_equal_or_better_loss_come_first(tmp_path: Path) -> None:
    report = graded(tmp_path, mine=0.1, better=0.01, other=0.2)
    assert [(it.denominator, it.standing) for it in report.comparisons] == [
        ("other", BETTER),
        ("unknown", UNKNOWN),
        ("better", WORSE),
    ]
    assert cells(comparison_table(report))["quality"] == ["equal or better", "not known", "faster but worse"]
    slower = replace(report.comparisons[2], ratio=replace(report.comparisons[2].ratio, median=0.9))
    assert standing_text(slower) == "worse"


def test_each_subject_has_its_figures_beside_its_speed(tmp_path: Path) -> None:
    report = graded(tmp_path, mine=-1e-9, other=0.2)
    assert [it.quality and it.quality.mean_kl for it in report.subjects] == [-1e-9, None, None, 0.2]
    columns = cells(results_table(report))
    assert (columns["mean KL"], columns["PPL"]) == (["0.0000", "0.2000"], ["20.50", "20.50"])


def test_without_figures_nothing_is_graded(tmp_path: Path) -> None:
    report = graded(tmp_path)
    assert [it.denominator for it in report.comparisons] == ["unknown", "better", "other"]
    assert "quality" not in cells(comparison_table(report))
    assert not {"mean KL", "PPL"} & set(cells(results_table(report)))


def test_figures_of_other_texts_are_not_compared(tmp_path: Path) -> None:
    rows = ((tmp_path / "a", made("mine")), (tmp_path / "b", made("other", text="another")))
    report = QualityPlan(rows, tmp_path).extended(make_report(), [A], Steps(0, None))
    assert [it.standing for it in report.comparisons] == [UNKNOWN]
    assert report.warnings[-1].startswith("the losses of mine and other were measured on other texts")


def test_what_eval_kept_is_found_by_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.runtimes.bench import quality

    asked = []
    monkeypatch.setattr(quality, "recall", lambda *of: asked.append(of))
    report = make_report()
    subjects = tuple(replace(it, info={**it.info, "precision": it.label}) for it in report.subjects)
    QualityPlan((), tmp_path).extended(replace(report, subjects=subjects), [A], Steps(0, None))
    wanted = [(it.artifact.sha256, it.label, tmp_path) for it in report.subjects if it.artifact is not None]
    assert asked == wanted
    assert asked


def test_nothing_runs_for_it() -> None:
    assert QualityPlan().count_steps([A], BenchOptions()) == 0


def test_ratios_of_the_loop_that_users_run_are_graded_too(tmp_path: Path) -> None:
    report = make_report()
    (first,) = report.comparisons
    pairs = [("unknown", "ttft"), ("other", "ttft")]
    texts = tuple(TextComparison(first.numerator, name, kind, (1.2,), first.ratio) for name, kind in pairs)
    rows = tuple((tmp_path / name, made(name, mean_kl=loss)) for name, loss in {"mine": 0.1, "other": 0.2}.items())
    plan = QualityPlan(rows, tmp_path)
    graded = plan.extended(replace(report, text_comparisons=texts), [A], Steps(0, None))
    assert [(it.denominator, it.standing) for it in graded.text_comparisons] == [
        ("other", BETTER),
        ("unknown", UNKNOWN),
    ]
    shown = cells(text_comparison_table(graded))
    assert (shown["case"], shown["metric"]) == (["text"] * 2, ["ttft"] * 2)
    assert shown["quality"] == ["equal or better", "not known"]
