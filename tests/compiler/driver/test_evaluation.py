"""Engines of a tiny model against it, on a text of its words: figures, references, what is refused."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.checkpoint import content_hashes
from llmc.compiler.driver import evaluation
from llmc.compiler.driver.driver import compile_model
from llmc.compiler.driver.evaluation import evaluate, logits_peers
from llmc.runtimes.bench.peers.options import NamedPeers
from llmc.runtimes.bench.workers.logits_peer import LogitsPeer
from llmc.runtimes.bench.workers.peers import PreparedPeer
from llmc.runtimes.evaluation.options import EvaluationOptions
from llmc.runtimes.evaluation.perplexity import LogitsComparison
from llmc.runtimes.evaluation.report import EvaluatedRow, EvaluationReport
from llmc.runtimes.generation.text import TextTokenizer

from ...shared import Shared
from ..tiny_text_model import WORDS, text_model

WINDOW = 32
WORKER = Path(__file__).parent / "logits_worker.py"


@pytest.fixture(scope="module")
def source(shared: Shared) -> Path:
    return text_model(shared)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 words: nine windows and a rest."""
    path = tmp_path_factory.mktemp("text") / "words.txt"
    path.write_text(" ".join(np.random.default_rng(0).choice(WORDS[5:], 300)) + "\n", encoding="utf-8")
    return path


def engine(shared: Shared, precision: str = "fp32", **optimize: Any) -> Path:
    options = CompileOptions(optimize=OptimizeOptions(precision=precision, effort="round", **optimize))
    return shared.make(
        "tiny-evaluated",
        lambda path: compile_model(str(text_model(shared)), path, options),
        precision=precision,
        **optimize,
    )


@pytest.fixture
def options(text: Path, tmp_path: Path) -> EvaluationOptions:
    return EvaluationOptions(text=text, window=WINDOW, cache=tmp_path / "cache")


def run(engines: list[Path], reference: Path, options: EvaluationOptions, peers: Any = ()) -> EvaluationReport:
    pairs = [(path.name, path) for path in engines]
    return evaluate(pairs, peers, str(reference), options, ExportOptions(), progress=NO_PROGRESS)


def by_hand(source: Path, text: Path, candidate: Any) -> Any:
    """Both models in transformers, the formulas on whole logits."""
    import torch
    from transformers import AutoModelForCausalLM

    ids = TextTokenizer.from_directory(source).encode(text.read_text(encoding="utf-8"))
    windows = np.array(ids[: len(ids) // WINDOW * WINDOW]).reshape(-1, WINDOW)
    model, comparison = AutoModelForCausalLM.from_pretrained(source), LogitsComparison()
    for window in windows:
        with torch.inference_mode():
            logits = [each(torch.tensor(window[None])).logits[0, 16:31].numpy() for each in (model, candidate(model))]
        comparison.update(*logits, window[17:])
    return comparison.result()


def test_a_float_engine_says_what_the_model_says(
    shared: Shared, source: Path, text: Path, options: EvaluationOptions
) -> None:
    report = run([engine(shared)], source, options)
    (row,) = report.rows
    assert (report.text.windows, report.text.positions, report.text.first) == (9, 9 * 15, 16)
    assert report.text.bos is None
    hand = by_hand(source, text, lambda model: model)
    for found in (report.reference.perplexity, row.quality.candidate_perplexity):
        assert (found.value, found.error) == pytest.approx(
            (hand.reference_perplexity.value, hand.reference_perplexity.error), rel=1e-5
        )
    assert row.quality.mean_kl.value == pytest.approx(0, abs=1e-6)
    assert row.quality.top1_agreement.value == 1
    assert row.equal_tokens == (64,) * 9
    assert row.first_divergence.value == 64
    assert row.bytes == (engine(shared) / "model.onnx.data").stat().st_size


def test_rows_are_told_apart_and_json_has_their_figures(
    shared: Shared, source: Path, options: EvaluationOptions
) -> None:
    report = run([engine(shared, "int8"), engine(shared, "int4")], source, options)
    rows = report.to_json()["artifacts"]
    json.dumps(report.to_json())
    assert [row["precision"] for row in rows] == ["int8", "int4"]
    assert 0 < rows[0]["mean_kl"] < rows[1]["mean_kl"] < 1
    assert rows[1]["median_kl"] < rows[1]["kl_p90"] < rows[1]["kl_p99"] <= rows[1]["max_kl"]
    for name in ("ppl", "mean_kl", "top1_agreement", "mean_delta_p", "rms_delta_p", "first_divergence"):
        assert rows[1][f"{name}_error"] > 0, name
    assert rows[1]["first_divergence"] < 64
    assert rows[0]["bytes"] > rows[1]["bytes"]


@pytest.mark.parametrize(("precision", "target"), [("fp32", "cpu"), ("int4", "cpu"), ("int8", "openvino")])
def test_where_an_engine_cuts_its_logits_changes_no_figure(
    shared: Shared, source: Path, options: EvaluationOptions, precision: str, target: str
) -> None:
    """Of a graph without the cut, with an engine's own operators in it or not, and of one that is stepped through."""
    engines = [engine(shared, precision, target=target, logits=kind) for kind in ("last", "all")]
    last, every = (run([path], source, options).rows[0] for path in engines)
    # OpenVINO multiplies one token otherwise than a chunk of them.
    near = 0.05 if target == "openvino" else 1e-3
    assert last.quality.mean_kl.value == pytest.approx(every.quality.mean_kl.value, rel=near, abs=1e-7)
    assert last.quality.positions == every.quality.positions
    assert target == "openvino" or last.equal_tokens == every.equal_tokens


def test_a_graph_for_a_gpu_is_measured_on_the_host_and_says_so(
    shared: Shared, source: Path, options: EvaluationOptions
) -> None:
    (row,) = run([engine(shared, "int4", target="cuda")], source, options).rows
    assert "CPU provider" in row.where
    assert 0 < row.quality.mean_kl.value < 1


def test_the_reference_is_opened_once(
    shared: Shared, source: Path, options: EvaluationOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = run([engine(shared, "int8")], source, options)
    monkeypatch.setattr(evaluation, "load_model", lambda *_: pytest.fail("the reference was opened again"))
    again = run([engine(shared, "int8")], source, options)
    assert (again.text, again.reference) == (one.text, one.reference)
    assert again.rows[0].quality.mean_kl.value == pytest.approx(one.rows[0].quality.mean_kl.value, rel=0.1)


def test_a_float_engine_may_be_the_reference(shared: Shared, source: Path, options: EvaluationOptions) -> None:
    mine, theirs = (run([engine(shared, "int4")], path, options).rows[0].quality for path in (engine(shared), source))
    assert mine.mean_kl.value == pytest.approx(theirs.mean_kl.value, rel=1e-3)


def test_what_is_no_reference_is_refused(
    shared: Shared, source: Path, options: EvaluationOptions, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="its weights are int4"):
        run([engine(shared)], engine(shared, "int4"), options)
    unverified = tmp_path / "unverified"
    shutil.copytree(engine(shared), unverified)
    write_manifest(unverified, replace(open_artifact(unverified).manifest, measured={}))
    with pytest.raises(UsageError, match="never compared with its model"):
        run([engine(shared)], unverified, options)
    rounded = tmp_path / "rounded"
    shutil.copytree(engine(shared), rounded)
    manifest = open_artifact(rounded).manifest
    write_manifest(rounded, replace(manifest, contract=replace(manifest.contract, rounded_to="fp16")))
    with pytest.raises(UsageError, match="its weights are fp16"):
        run([engine(shared)], rounded, options)


def test_another_vocabulary_is_refused_before_anything_is_computed(
    shared: Shared, source: Path, options: EvaluationOptions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    shutil.copytree(engine(shared), other)
    manifest, tokenizer = open_artifact(other).manifest, json.loads((other / "tokenizer.json").read_text())
    words = tokenizer["model"]["vocab"]
    words["w7"], words["w8"] = words["w8"], words["w7"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    write_manifest(other, manifest)
    monkeypatch.setattr(evaluation, "load_model", lambda *_: pytest.fail("the reference was opened"))
    with pytest.raises(UsageError, match="another vocabulary"):
        run([other], source, options)


def test_a_text_that_is_too_short_is_refused(
    shared: Shared, source: Path, options: EvaluationOptions, tmp_path: Path
) -> None:
    short = tmp_path / "short.txt"
    short.write_text("w5 w6 w7")
    with pytest.raises(UsageError, match="3 tokens make no window of 32"):
        run([engine(shared)], source, replace(options, text=short))
    with pytest.raises(UsageError, match="20 tokens make no window of 32"):
        replace(options, tokens=20)


def test_fewer_tokens_are_fewer_windows(shared: Shared, source: Path, options: EvaluationOptions) -> None:
    assert run([engine(shared)], source, replace(options, tokens=100)).text.windows == 3


def test_a_model_without_a_tokenizer_has_no_text(
    shared: Shared, source: Path, options: EvaluationOptions, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(source, bare, ignore=shutil.ignore_patterns("tokenizer*"))
    with caplog.at_level(logging.ERROR), pytest.raises(UsageError, match="has no tokenizer"):
        run([engine(shared)], bare, options)


def test_a_reference_is_known_by_all_bytes_of_its_files(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slowly they are read: the tokenizer is there long before."""
    read = content_hashes.file_sha256

    def slowly(path: Path, stop: threading.Event) -> str:
        time.sleep(0.05)
        return read(path, stop)

    monkeypatch.setattr(content_hashes, "file_sha256", slowly)
    hashes = evaluation.open_reference(str(source), ExportOptions(), None).identity["transformers"]
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= hashes.keys()
    assert hashes == {name: hashlib.sha256((source / name).read_bytes()).hexdigest() for name in hashes}


def worker(source: Path, shift: float) -> LogitsPeer:
    """A process that runs the model in transformers, its logits disturbed."""
    return LogitsPeer("other", (sys.executable, str(WORKER), str(shift)), source / "config.json")


def test_a_peer_is_a_row_of_the_same_table(
    shared: Shared, source: Path, text: Path, options: EvaluationOptions
) -> None:
    def disturbed(model: Any) -> Any:
        import torch

        def run(ids: Any) -> Any:
            output = model(ids)
            output.logits = output.logits + 0.5 * torch.sin(torch.arange(output.logits.shape[-1]))
            return output

        return run

    report = run([engine(shared)], source, options, [worker(source, 0.0), worker(source, 0.5)])
    _, same, other = report.rows
    assert same.quality.mean_kl.value == pytest.approx(0, abs=1e-6)
    hand = by_hand(source, text, disturbed)
    assert other.quality.mean_kl.value == pytest.approx(hand.mean_kl.value, rel=1e-4)
    assert other.quality.top1_agreement.value == hand.top1_agreement.value < 1
    assert (other.label, other.runtime, other.bytes) == ("other", "fake", (source / "config.json").stat().st_size)


def test_a_peer_with_another_vocabulary_is_refused(shared: Shared, source: Path, options: EvaluationOptions) -> None:
    peer = LogitsPeer("other", (sys.executable, str(WORKER), "0", "161"), source / "config.json")
    with pytest.raises(UsageError, match="vocabulary of 161 tokens, the reference one of 160"):
        run([engine(shared)], source, options, [peer])


def test_peers_that_give_no_logits_are_refused() -> None:
    able = "llamacpp-python, transformers, genai, openvino-genai, ctranslate2"
    with pytest.raises(UsageError, match=f"peer vllm gives no logits; those that do: {able}"):
        logits_peers([f"vllm={sys.executable}:{Path(__file__).parent}"])
    with pytest.raises(UsageError, match="peer vllm gives no logits"):
        logits_peers(["vllm@auto"])
    with pytest.raises(UsageError, match="does not exist"):
        logits_peers([f"llamacpp-python={sys.executable}:none.gguf"])
    with pytest.raises(UsageError, match="evaluated as it is; leave @Q4_0 away"):
        logits_peers([f"llamacpp-python={sys.executable}:{__file__}@Q4_0"])
    (peer,) = logits_peers([f"llamacpp-python={sys.executable}:{__file__}"])
    assert (peer.label, peer.path) == ("test_evaluation", Path(__file__).resolve())


def test_peers_by_name_stand_in_the_order_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[Any] = []

    def prepared(choices: Any, named: Any, locate: Any, progress: Any) -> list[PreparedPeer]:
        asked.append(([choice.environment.name for choice in choices], named, locate("model")))
        return [PreparedPeer(f"{c.environment.name} int8", tmp_path, {"a": ("a",), "b": ("b",)}) for c in choices]

    monkeypatch.setattr("llmc.runtimes.bench.peers.named.named_peers", prepared)
    gguf = f"llamacpp-python={sys.executable}:{__file__}"
    options = NamedPeers("model")
    found = logits_peers(["openvino-genai@int8", gguf, "ctranslate2"], options, lambda model: tmp_path / model)
    assert [peer.label for peer in found] == ["openvino-genai int8", "test_evaluation", "ctranslate2 int8"]
    assert found[0].command == ("a",), "one row for all variants"
    assert asked == [(["openvino-genai", "ctranslate2"], options, tmp_path / "model")]


def test_the_size_of_a_folder_is_that_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "inner").mkdir()
    for name, size in (("a", 3), ("inner/b", 4)):
        (tmp_path / name).write_bytes(bytes(size))
    assert LogitsPeer("peer", (), tmp_path).bytes == 7
    assert LogitsPeer("peer", (), tmp_path / "a").bytes == 3


def test_a_single_prompt_has_no_error() -> None:
    quality: Any = None
    row = EvaluatedRow("a", "a", "r", "int4", "", 1, quality, (7,), 64)
    assert (row.first_divergence.value, row.first_divergence.error) == (7, float("inf"))


def test_an_engine_that_is_not_finite_is_named_with_the_place(
    shared: Shared, source: Path, options: EvaluationOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    run([engine(shared)], source, options)
    opened = evaluation.session_source

    def broken(session: Any) -> Any:
        def rows(windows: Any, first: int) -> Any:
            for part in opened(session)(windows, first):
                if part.window == 1:
                    part.logits[2, 7] = np.nan
                yield part

        return rows

    monkeypatch.setattr(evaluation, "session_source", broken)
    name = engine(shared).name
    with pytest.raises(
        EngineError, match=f"{name}'s logits are not finite: nan for token 7 after 19 tokens of window 2"
    ):
        run([engine(shared)], source, options)
