"""The OpenVINO GenAI peer: with a stand-in for its library, over a model that OpenVINO itself wrote."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.runtimes.bench.workers import peer_openvino_genai
from llmc.runtimes.bench.workers.peer_openvino_genai import (
    MODEL,
    ModelFacts,
    OpenVinoGenaiTarget,
    precision_of,
    read_facts,
    split_times,
)
from llmc.runtimes.bench.workers.peers import PEERS, PeerChoice
from llmc.runtimes.bench.workers.protocol import RunRequest

openvino = pytest.importorskip("openvino", reason="openvino is not installed")
VOCAB, WIDTH = 40, 128
TABLE = np.random.default_rng(3).integers(-4, 5, (VOCAB, WIDTH), np.int8)


def save_model(path: Path, *, bits: int = 4, stateful: bool = True) -> None:
    """A table and a head over it, and a cache [batch, 2, past, 8] of two layers that nothing attends to."""
    op = __import__("openvino.opset13", fromlist=["opset13"])
    ids = op.parameter([-1, -1], np.int64, name="input_ids")
    ids.output(0).get_tensor().set_names({"input_ids"})
    kind = {4: openvino.Type.u4, 8: openvino.Type.i8}[bits]
    stored = np.zeros(VOCAB * WIDTH // 2, np.uint8) if bits == 4 else TABLE.reshape(-1)
    numbers = op.constant(openvino.Tensor(stored, openvino.Shape([VOCAB, WIDTH]), kind))
    table = op.multiply(op.convert(numbers, "f32"), op.constant(np.ones((VOCAB, 1), np.float32)))
    hidden = op.gather(table, ids, op.constant(np.int64(0)))
    logits = op.matmul(hidden, table, False, True)
    result = op.result(logits)
    logits.output(0).get_tensor().set_names({"logits"})
    sinks = []
    for name in ("k", "v") if stateful else ():
        shape = openvino.PartialShape([-1, 2, -1, 8])
        read = op.read_value(op.constant(np.zeros((1, 2, 0, 8), np.float32)), name, openvino.Type.f32, shape)
        numbers = op.slice(hidden, op.constant([0]), op.constant([16]), op.constant([1]), op.constant([2]))
        heads = op.transpose(op.reshape(numbers, op.constant([0, -1, 2, 8]), True), op.constant([0, 2, 1, 3]))
        sinks.append(op.assign(op.concat([read, heads], 2), name))
    openvino.save_model(openvino.Model([result], sinks, [ids], "m"), str(path / MODEL), compress_to_fp16=False)


class Pipeline:
    """GenAI's, which makes each token in two milliseconds and the first in fifty."""

    opened: list[tuple[tuple[Any, ...], dict[str, Any]]]

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.opened.append((arguments, options))

    def generate(self, inputs: Any, config: Any) -> Any:
        rows, count = inputs.ids.shape[0], config.max_new_tokens
        assert config.min_new_tokens == count
        assert config.ignore_eos
        assert not config.do_sample
        times = [1000.0 + 2 * step for step in range(count) for _ in range(rows)]
        raw = SimpleNamespace(m_new_token_times=times, m_times_to_first_token=[50_000.0])
        return SimpleNamespace(tokens=[[0] * count] * rows, perf_metrics=SimpleNamespace(raw_metrics=raw))


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Any:
    Pipeline.opened = []
    library = SimpleNamespace(
        __version__="2026.4.1.0",
        LLMPipeline=Pipeline,
        GenerationConfig=SimpleNamespace,
        SchedulerConfig=lambda: SimpleNamespace(enable_prefix_caching=True),
        TokenizedInputs=lambda ids, mask: SimpleNamespace(ids=ids, mask=mask),
    )
    monkeypatch.setitem(__import__("sys").modules, "openvino_genai", library)
    return library


def write_manifest(path: Path, **fields: Any) -> None:
    (path / "llmc.json").write_text(json.dumps({"weight_bytes": 77, "max_context": 64, "logits": "last", **fields}))


def test_facts_of_a_model_of_optimums(tmp_path: Path) -> None:
    save_model(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"max_position_embeddings": 99}))
    facts = read_facts(openvino, tmp_path)
    assert (facts.vocab, facts.layers, facts.cache_numbers, facts.context) == (VOCAB, 1, 32, 99)
    assert facts.weight_bytes == (tmp_path / "openvino_model.bin").stat().st_size >= VOCAB * WIDTH // 2
    assert (facts.precision, facts.logits) == ("int4", "all")


def test_llmcs_manifest_knows_better(tmp_path: Path) -> None:
    save_model(tmp_path, bits=8)
    write_manifest(tmp_path)
    facts = read_facts(openvino, tmp_path)
    assert (facts.weight_bytes, facts.source, facts.context) == (77, "llmc.json", 64)
    assert (facts.precision, facts.logits) == ("int8", "last")


def test_what_is_no_such_model(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match=r"holds no openvino_model\.xml; make one: llmc compile"):
        read_facts(openvino, tmp_path)
    save_model(tmp_path, stateful=False)
    with pytest.raises(RuntimeError, match="no language model that keeps its own KV cache"):
        read_facts(openvino, tmp_path)


@pytest.mark.parametrize(("logits", "variants"), [("last", ["stateful"]), ("all", ["stateful", "paged"])])
def test_only_what_reads_the_mask_in_attention_alone_can_be_paged(
    tmp_path: Path, native: Any, logits: str, variants: list[str]
) -> None:
    save_model(tmp_path)
    write_manifest(tmp_path, logits=logits)
    prepared = OpenVinoGenaiTarget().prepare(str(tmp_path), str(tmp_path))
    assert sorted(prepared.details["variants"]) == sorted(variants)
    assert set(variants) <= set(PEERS["openvino-genai"].variants)


def test_prompts_are_never_found_in_a_cache(tmp_path: Path, native: Any) -> None:
    save_model(tmp_path)
    OpenVinoGenaiTarget("paged").open(str(tmp_path), 3)
    (_, options) = Pipeline.opened[0]
    assert not options["scheduler_config"].enable_prefix_caching
    assert options["INFERENCE_NUM_THREADS"] == 3
    assert options["ATTENTION_BACKEND"] == "PA"
    OpenVinoGenaiTarget("stateful").open(str(tmp_path), 3)
    assert Pipeline.opened[1][1]["ATTENTION_BACKEND"] == "SDPA"


@pytest.mark.parametrize("batch", [1, 3])
def test_a_run(tmp_path: Path, native: Any, batch: int) -> None:
    save_model(tmp_path)
    target = OpenVinoGenaiTarget("stateful")
    with pytest.raises(RuntimeError, match="run before open"):
        target.run(RunRequest(4, 6, batch))
    target.open(str(tmp_path), 1)
    times = target.run(RunRequest(4, 6, batch))
    assert times.first_token_s == pytest.approx(0.05)
    assert times.step_s == pytest.approx([0.002] * 5)
    target.close()


def test_a_run_beyond_the_context(tmp_path: Path, native: Any) -> None:
    save_model(tmp_path)
    write_manifest(tmp_path)
    target = OpenVinoGenaiTarget("stateful")
    target.open(str(tmp_path), 1)
    with pytest.raises(RuntimeError, match="beyond the context 64"):
        target.run(RunRequest(60, 6, 1))


FACTS = ModelFacts(40, 2, 32, 64, 77, "llmc.json", "fp32", "all")


@pytest.fixture
def ready(tmp_path: Path, native: Any, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``ready(facts, backend)``: a target with a model of these facts open, and its info; what it was asked."""
    made: Any = SimpleNamespace(asked=[], now=100.0, cut=False)

    class Recording(Pipeline):
        def generate(self, inputs: Any, config: Any) -> Any:
            made.asked.append((inputs.ids.tolist(), config.max_new_tokens))
            result = super().generate(inputs, config)
            if made.cut:
                result.tokens = [*result.tokens[:-1], result.tokens[-1][:-1]]
            return result

    def opened(facts: ModelFacts = FACTS, backend: str = "stateful") -> tuple[OpenVinoGenaiTarget, dict[str, Any]]:
        monkeypatch.setattr(peer_openvino_genai, "read_facts", lambda library, path: facts)
        monkeypatch.setattr(peer_openvino_genai, "time", SimpleNamespace(time=lambda: made.now))
        target = OpenVinoGenaiTarget(backend)
        return target, target.open(str(tmp_path), 3)

    monkeypatch.setattr(native, "LLMPipeline", Recording)
    monkeypatch.setattr(openvino, "Tensor", lambda array: array)
    native.TokenizedInputs = lambda ids, mask: SimpleNamespace(ids=ids, mask=mask)
    made.open, made.folder = opened, tmp_path
    return made


@pytest.mark.parametrize(
    ("precision", "by_llmc", "exact"),
    [("fp32", True, True), ("fp32", False, False), ("fp16", True, False), ("int4", True, False)],
)
def test_a_float32_model_of_llmcs_is_computed_in_float32(
    ready: Any, precision: str, by_llmc: bool, exact: bool
) -> None:
    if by_llmc:
        write_manifest(ready.folder)
    _, info = ready.open(replace(FACTS, precision=precision))
    options = Pipeline.opened[0][1]
    assert options.get("INFERENCE_PRECISION_HINT") == ("f32" if exact else None)
    assert options.get("KV_CACHE_PRECISION") == ("f32" if exact else None)
    assert info["cache_bytes_per_token"] == 32 * (4 if exact else 1)


def test_a_warm_up_is_short_and_the_run_is_whole(ready: Any) -> None:
    target, _ = ready.open()
    request = RunRequest(5, 4, 2, warm_steps=3)
    target.run(request)
    rows = request.prompt_tokens(40)
    assert ready.asked == [([row[:2] for row in rows], 4), (rows, 4)]
    ready.asked.clear()
    target.run(RunRequest(5, 4, 2, warm_steps=0))
    assert len(ready.asked) == 1


def test_the_window_is_that_of_the_steps(ready: Any) -> None:
    target, _ = ready.open()
    times = target.run(RunRequest(5, 4, 1))
    assert times.decode_window == (pytest.approx(100 - 0.006), 100.0)


def test_a_case_that_just_fills_the_context(ready: Any) -> None:
    target, _ = ready.open()
    assert len(target.run(RunRequest(60, 5, 1)).step_s) == 4
    with pytest.raises(RuntimeError, match="beyond the context 64"):
        target.run(RunRequest(60, 6, 1))


def test_a_row_that_was_cut_short_is_no_run(ready: Any) -> None:
    target, _ = ready.open()
    ready.cut = True
    with pytest.raises(RuntimeError, match=r"GenAI made \[3, 2\] tokens, not 3 a row"):
        target.run(RunRequest(5, 3, 2, warm_steps=0))


def constant(kind: str, *shape: int, operator: str = "Constant") -> Any:
    return SimpleNamespace(
        get_type_name=lambda: operator,
        get_element_type=lambda: SimpleNamespace(get_type_name=lambda: kind),
        get_output_shape=lambda index: shape,
    )


@pytest.mark.parametrize(
    ("nodes", "precision"),
    [
        ([constant("f32", 64, 64)], "fp32"),
        ([constant("f32", 64, 64), constant("f16", 64, 64)], "fp16"),
        ([constant("bf16", 64, 64)], "bf16"),
        ([constant("f16", 64, 64), constant("i8", 64, 64)], "int8"),
        ([constant("u8", 64, 64), constant("u4", 64, 64)], "int4"),
        ([constant("f32", 64, 64), constant("u4", 64, 63)], "fp32"),  # 4032 elements are no weight
        ([constant("f32", 64, 64), constant("u4", 64, 64, operator="Parameter")], "fp32"),
    ],
)
def test_the_precision_is_that_of_the_smallest_large_constant(nodes: list[Any], precision: str) -> None:
    assert precision_of(nodes) == precision


def test_times_of_rows_that_are_recorded_by_themselves() -> None:
    metrics = SimpleNamespace(m_new_token_times=[1.0, 1.0, 4.0, 4.0, 9.0, 9.0], m_times_to_first_token=[5_000.0, 9.0])
    assert split_times(metrics, 3) == (0.005, (0.003, 0.005))


def test_lost_times_are_no_times() -> None:
    metrics = SimpleNamespace(m_new_token_times=[1.0, 2.0], m_times_to_first_token=[5.0])
    with pytest.raises(RuntimeError, match="times of 2 tokens, not of 3"):
        split_times(metrics, 3)


def test_its_name_on_the_command_line() -> None:
    choice = PeerChoice.parse("openvino-genai/paged=/venv/bin/python:/model")
    assert (choice.name, choice.variant, choice.source) == ("openvino-genai", "paged", Path("/model"))


TEXT = [7, 30, 2, 9, 11, 1]


@pytest.mark.parametrize("logits", ["all", "last"])
def test_logits_of_the_scored_positions(
    tmp_path: Path, native: Any, monkeypatch: pytest.MonkeyPatch, logits: str
) -> None:
    save_model(tmp_path, bits=8)
    write_manifest(tmp_path, logits=logits)
    target = OpenVinoGenaiTarget()
    with pytest.raises(RuntimeError, match="logits before open"):
        target.logits(TEXT, 2, "none")
    target.open(str(tmp_path), 1)
    with pytest.raises(RuntimeError, match="65 tokens are beyond the context 64"):
        target.logits([1] * 65, 2, "none")
    pieces, infer = [], target._infer
    monkeypatch.setattr(
        target, "_infer", lambda ids, past: pieces.append((past, ids.tolist()[0])) or infer(ids, past)
    )
    target.logits(TEXT, 2, str(tmp_path / "logits"))
    found = np.fromfile(tmp_path / "logits", np.float32).reshape(-1, VOCAB)
    wanted = (TABLE[TEXT[2:5]].astype(np.float32)) @ TABLE.astype(np.float32).T
    # After the third to the fifth of six tokens; on many processors OpenVINO computes in bfloat16.
    np.testing.assert_allclose(found, wanted, atol=3)
    whole, stepped = [(0, TEXT[:5])], [(0, TEXT[:3]), (3, TEXT[3:4]), (4, TEXT[4:5])]
    assert pieces == (whole if logits == "all" else stepped)
    with pytest.raises(RuntimeError, match="run before open"):
        target.run(RunRequest(4, 6, 1))


@pytest.mark.parametrize("precision", ["int8", "fp32"])
def test_logits_are_computed_in_the_numbers_of_the_runs(
    tmp_path: Path, native: Any, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    save_model(tmp_path, bits=8)
    write_manifest(tmp_path, logits="all")
    facts, compiled = replace(read_facts(openvino, tmp_path), precision=precision), openvino.compile_model
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(peer_openvino_genai, "read_facts", lambda library, path: facts)
    monkeypatch.setattr(openvino, "compile_model", lambda *of: seen.append(of[2]) or compiled(*of))
    target = OpenVinoGenaiTarget()
    target.open(str(tmp_path), 1)
    for _ in range(2):
        target.logits(TEXT, 2, str(tmp_path / "logits"))
    lengths = [item.state.shape[2] for item in target._request.query_state()]
    assert lengths == [len(TEXT) - 1] * 2, "each text has a cache of its own"
    assert seen == [{"INFERENCE_NUM_THREADS": 1, **(peer_openvino_genai.EXACT if precision == "fp32" else {})}]
    assert Pipeline.opened[0][1].items() >= seen[0].items()
