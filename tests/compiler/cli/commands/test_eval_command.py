"""eval: what is compared on what, and where the report goes."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
from typer.testing import Result

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.cli.commands.eval_command import converted_model
from llmc.compiler.driver import evaluation
from llmc.runtimes.evaluation.perplexity import Estimate, Quality
from llmc.runtimes.evaluation.report import EvaluatedRow, EvaluationReport, ReferenceFacts, TextFacts

Run = Callable[..., Result]
QUALITY = Quality(
    positions=1020,
    top1_agreement=Estimate(0.8812, 0.0031),
    mean_kl=Estimate(0.04512, 0.0009),
    median_kl=0.0301,
    kl_p90=0.1,
    kl_p95=0.15,
    kl_p99=0.2801,
    kl_p999=0.9,
    max_kl=1.5,
    max_abs_error=None,
    reference_perplexity=Estimate(19.778, 0.4),
    candidate_perplexity=Estimate(20.5011, 0.41),
    perplexity_ratio=Estimate(1.03, 0.002),
    mean_delta_p=Estimate(-0.0031, 0.0005),
    rms_delta_p=Estimate(0.0421, 0.0007),
)


def report(where: str = "") -> EvaluationReport:
    row = EvaluatedRow("int4", "out/int4", "onnxruntime-cpu", "int4", where, 95_000_000, QUALITY, (3, 64), 64)
    text = TextFacts("the evaluation text of llmc", 512, 4, 1020, 256, None)
    return EvaluationReport(text, ReferenceFacts("model", "transformers", Estimate(19.778, 0.4)), (row,))


@pytest.fixture
def evaluated(monkeypatch: pytest.MonkeyPatch) -> Any:
    fake = create_autospec(evaluation.evaluate, return_value=report())
    monkeypatch.setattr(evaluation, "evaluate", fake)
    return fake


def test_defaults(llmc: Run, evaluated: Any, tmp_path: Path) -> None:
    result = llmc("eval", tmp_path / "a", tmp_path / "b", "--reference", "model")
    assert result.exit_code == 0, result.stderr
    engines, peers, reference, options, reading = evaluated.call_args.args
    assert engines == [("a", tmp_path / "a"), ("b", tmp_path / "b")]
    assert (peers, reference) == ([], "model")
    assert (options.text, options.tokens, options.window, options.threads) == (None, None, 512, None)
    assert reading.search_path == ()


def test_figures_come_with_their_errors(llmc: Run, evaluated: Any) -> None:
    shown = " ".join(llmc("eval", "out/int4", "--reference", "model").stdout.split())
    figures = ["95.0", "20.501 ± 0.410", "0.04512 ± 0.00090", "0.2801", "88.12 ± 0.31", "-0.310 ± 0.050"]
    for words in (*figures, "4.210 ± 0.070", "33.5 ± 30.5", "19.7780 ± 0.4000", "no BOS", "256 to 510", "1,020"):
        assert words in shown, words


def test_options(llmc: Run, evaluated: Any, tmp_path: Path) -> None:
    words = ["--text", "mine.txt", "--tokens", "4096", "--window", "256", "--threads", "3", "--cache", "kept"]
    assert llmc("eval", "engine", "--reference", "model", *words, "--model-path", "p").exit_code == 0
    options, reading = evaluated.call_args.args[3:]
    assert (options.text, options.cache) == (Path("mine.txt"), Path("kept"))
    assert (options.tokens, options.window, options.threads) == (4096, 256, 3)
    assert reading.search_path == (Path("p"),)


def test_json_goes_into_a_file_or_to_stdout(llmc: Run, evaluated: Any, tmp_path: Path) -> None:
    path = tmp_path / "quality.json"
    result = llmc("eval", "engine", "--reference", "model", "--json", path)
    assert "mean KL" in result.stdout
    written = json.loads(path.read_text())
    assert written == report().to_json()
    (row,) = written["artifacts"]
    assert (row["ppl"], row["mean_kl"], row["kl_p99"], row["top1_agreement"]) == (20.5011, 0.04512, 0.2801, 0.8812)
    assert (row["ppl_error"], row["first_divergence"], row["equal_tokens"]) == (0.41, 33.5, [3, 64])
    result = llmc("eval", "engine", "--reference", "model", "--json", "-")
    assert json.loads(result.stdout) == written


def test_what_ran_elsewhere_is_said(llmc: Run, evaluated: Any) -> None:
    evaluated.return_value = report("its graph, on the host")
    assert "int4 was measured on its graph, on the host" in llmc("eval", "engine", "--reference", "m").stdout


def test_a_peer_that_does_not_exist(llmc: Run, evaluated: Any) -> None:
    result = llmc("eval", "engine", "--reference", "m", "--peer", "llamacpp-python=python:none.gguf")
    assert result.exit_code == 2
    assert "does not exist" in result.stderr


def test_peers_by_name_convert_the_reference(
    llmc: Run, evaluated: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked: list[Any] = []

    def peers(choices: Any, named: Any, locate: Any, progress: Any) -> list[Any]:
        asked.append((choices, named.checkpoint, named.directory, locate(named.checkpoint)))
        return []

    monkeypatch.setattr(evaluation, "logits_peers", peers)
    (tmp_path / "config.json").write_text("{}")
    words = ("--peer", "ctranslate2", "--peer", "openvino-genai@int8", "--peers-dir", "kept")
    result = llmc("eval", "engine", "--reference", tmp_path, *words)
    assert result.exit_code == 0, result.stderr
    assert asked == [(("ctranslate2", "openvino-genai@int8"), str(tmp_path), "kept", tmp_path)]


def test_what_peers_cannot_convert_is_said(llmc: Run, evaluated: Any, tmp_path: Path) -> None:
    reading = ExportOptions()
    (tmp_path / "llmc.json").write_text("{}")
    with pytest.raises(UsageError, match="is an engine: name the model"):
        converted_model(str(tmp_path), reading, NO_PROGRESS)
    for changed in (replace(reading, adapters=("a",)), replace(reading, revision="main")):
        with pytest.raises(UsageError, match="as it lies on the disk: name its directory"):
            converted_model("model", changed, NO_PROGRESS)


def test_a_reference_is_asked_for(llmc: Run) -> None:
    assert llmc("eval", "engine").exit_code == 2


def test_a_report_without_a_place_is_told_before_anything_is_computed(
    llmc: Run, evaluated: Any, tmp_path: Path
) -> None:
    result = llmc("eval", "engine", "--reference", "model", "--json", tmp_path)
    assert result.exit_code == 2
    assert "is a directory; name a file" in result.stderr
    evaluated.assert_not_called()


def test_figures_are_shown_where_the_report_cannot_be_written_any_more(llmc: Run, evaluated: Any) -> None:
    result = llmc("eval", "engine", "--reference", "model", "--json", "/dev/full")
    assert result.exit_code == 71
    assert "/dev/full cannot be written (No space left on device)" in result.stderr
    assert "mean KL" in result.stdout


def test_continuous_integration_is_told(llmc: Run, evaluated: Any, tmp_path: Path) -> None:
    assert llmc("eval", "engine", "--reference", "model", "--summary", tmp_path / "summary.md").exit_code == 0
    assert "| passed | int4: mean KL | 0.04512 ± 0.00090 |" in (tmp_path / "summary.md").read_text()


def test_figures_are_kept_for_benchmarks(llmc: Run, evaluated: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[Any] = []
    monkeypatch.setattr("llmc.runtimes.bench.quality.remember", kept.append)
    assert llmc("eval", "out/int4", "--reference", "model").exit_code == 0
    assert kept == [report().to_json()]
