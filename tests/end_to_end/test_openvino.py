"""Engines of OpenVINO say what the model says: tiny models of many kinds, and SmolLM2."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.golden import load_golden
from llmc.compiler.base.contract import LogitsKind
from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions, Precision
from llmc.compiler.driver.driver import build, compile_model, optimize
from llmc.runtimes.engines import open_session
from llmc.runtimes.openvino.session import OpenVinoSession
from llmc.runtimes.session.engine import Session

from ..generation import generate
from ..shared import Shared
from .conftest import Built
from .oracle import THREADS, Row, lead_session, load_eager, reference_row, whole_logits
from .tiny import SIZES, shared_model, shared_portable

openvino = pytest.importorskip("openvino", reason="openvino is not installed")

BOUND = 1e-5
"""Largest error of float32, in units of the largest logit. Measured: 2e-6 at most."""
GEMMA2 = {"head_dim": 32, "sliding_window": 8, "query_pre_attn_scalar": 32}
ARCHITECTURES = [
    pytest.param("llama", {"tie_word_embeddings": True}, id="llama, tied"),
    pytest.param("mistral", {"sliding_window": 8}, id="mistral, in a window"),
    pytest.param("qwen3", {"head_dim": 32}, id="qwen3: norms by head"),
    pytest.param("gemma2", GEMMA2, id="gemma2: softcaps"),
    pytest.param("phi", {}, id="phi: partial rotation"),
    pytest.param("cohere", {}, id="cohere: interleaved rotation"),
    pytest.param("bloom", {"n_layer": 2, "n_head": 4}, id="bloom: ALiBi"),
    pytest.param("lfm2", {}, id="lfm2: states of convolutions"),
]
GOLDEN_KL = 0.0043
"""Of SmolLM2 in int4 from a Q4_1 file: 1.1 of what ONNX Runtime's engine of the same blocks had, 0.0039."""


def compiled(
    portable: Path, output: Path, logits: LogitsKind = "last", precision: Precision = "auto", **options: Any
) -> Path:
    """The engine of a portable graph, beside the target graph that it is built from."""
    target = output.with_name(f"{output.name}-target")
    asked = OptimizeOptions(
        target="openvino", logits=logits, precision=precision, strict=True, effort="round", **options
    )
    optimize(portable, target, asked)
    build(target, output, threads=1)
    return output


def error_of(directory: Path, rows: list[Row], *chunks: int) -> float:
    """The largest over prefills in chunks of these lengths (0: whole) of a ragged batch."""
    session = open_session(directory, threads=1)
    try:
        largest = max(float(np.abs(row.logits).max()) for row in rows)
        errors = [lead_session(session, rows, chunk=each).error for each in chunks]
        return max(errors) / largest
    finally:
        session.close()


@pytest.mark.parametrize(("model_type", "config"), ARCHITECTURES)
def test_architectures(shared: Shared, tmp_path: Path, model_type: str, config: dict[str, Any]) -> None:
    """A ragged batch, whole, in chunks and token by token, and decode."""
    random, eager = np.random.default_rng(0), load_eager(shared_model(shared, model_type, **config))
    prompts = [random.integers(3, SIZES["vocab_size"], length).tolist() for length in (33, 5, 20)]
    rows = [reference_row(eager, prompt, 6) for prompt in prompts]
    logits: LogitsKind = "all" if model_type == "llama" else "last"
    portable = shared_portable(shared, model_type, **config)
    assert error_of(compiled(portable, tmp_path / "engine", logits), rows, 0, 7, 1) < BOUND


def test_a_row_may_wait(shared: Shared, tmp_path: Path) -> None:
    """Rows advance by different numbers of tokens, 0 included, from the first chunk on; in a window of 4."""
    portable = shared_portable(shared, "mistral", sliding_window=4)
    random, eager = np.random.default_rng(0), load_eager(shared_model(shared, "mistral", sliding_window=4))
    tokens = random.integers(3, SIZES["vocab_size"], (2, 12))
    expected = [whole_logits(eager, row.tolist()) for row in tokens]
    session = open_session(compiled(portable, tmp_path / "engine", "all"), threads=1)
    # Twelve tokens a row fit; padding takes further columns.
    session.reset(2, 12)
    for step in ([5, 0], [0, 3], [3, 4], [1, 0], [0, 1], [1, 1], [2, 3]):
        before = session.lengths
        chunk = np.full((2, max(step)), 7, np.int64)
        for row, count in enumerate(step):
            chunk[row, :count] = tokens[row, before[row] : before[row] + count]
        logits = session.forward(chunk, np.array(step)).host()
        for row, count in enumerate(step):
            wanted = expected[row][before[row] : before[row] + count]
            np.testing.assert_allclose(logits[row, :count], wanted, rtol=0, atol=1e-4)
    assert session.lengths.tolist() == [12, 12]
    with pytest.raises(EngineError, match="a row would hold 13 tokens, but the cache has room for 12"):
        session.forward(np.array([[3], [3]]))
    session.close()


def layers_of(session: OpenVinoSession) -> list[tuple[str, Any]]:
    """Kind and node of what the plugin executes."""
    nodes = session.compiled.get_runtime_model().get_ordered_ops()
    return [(node.get_rt_info()["layerType"].astype(str), node) for node in nodes]


@pytest.mark.parametrize(
    ("precision", "zero_points", "linear", "zero_type"),
    [
        ("fp32", "auto", "f32", None),
        ("int8", "auto", "i8", "dynamic"),
        ("int4", "auto", "u4", "f32"),
        ("int4", "integer", "u4", "u4"),
        ("int4", "none", "i4", "dynamic"),
    ],
)
def test_the_plugin_keeps_weights_small_and_fuses_attention(
    shared: Shared, tmp_path: Path, precision: Precision, zero_points: Any, linear: str, zero_type: str | None
) -> None:
    portable = shared_portable(shared, "llama", hidden_size=256, intermediate_size=512, vocab_size=512)
    engine = compiled(portable, tmp_path / "engine", precision=precision, zero_points=zero_points)
    session = open_session(engine, threads=1)
    assert isinstance(session, OpenVinoSession)
    found, layers = layers_of(session), SIZES["num_hidden_layers"]
    count = Counter(kind for kind, _ in found)
    expected = {"ScaledDotProductAttention": 1, "RoPE": 2, "MemoryInput": 2, "FullyConnected": 7, "Pad": 0}
    assert {kind: count[kind] // layers for kind in expected} == expected
    assert count["RMS"] == 2 * layers + 1
    for kind, node in found:
        if kind == "MemoryInput":
            (target,) = node.output(0).get_target_inputs()
            # Not Concat: the attention appends to the cache itself.
            assert target.get_node().get_rt_info()["layerType"].astype(str) == "ScaledDotProductAttention"
    weights = Counter(
        node.input_value(1).get_element_type().get_type_name() for kind, node in found if kind == "FullyConnected"
    )
    head = {"fp32": "f32", "int8": "i8", "int4": "i8"}[precision]
    assert weights == Counter({linear: 7 * layers}) + Counter({head: 1})
    if zero_type is not None:
        # "dynamic" is an input that is not there. The plugin's faster way takes zero points of 4 or 8 bits alone.
        zeros = [node.input_value(4) for kind, node in found if kind == "FullyConnected"]
        types = Counter(value.get_element_type().get_type_name() for value in zeros)
        assert types == Counter({zero_type: 7 * layers}) + Counter({"dynamic": 1})
    session.close()


def test_the_same_bytes_twice(shared: Shared, tmp_path: Path) -> None:
    portable = shared_portable(shared)
    once, twice = (compiled(portable, tmp_path / name, precision="int4") for name in ("once", "twice"))
    for path in sorted(once.iterdir()):
        assert path.read_bytes() == (twice / path.name).read_bytes(), path.name


@pytest.mark.parametrize(("model_type", "config"), [("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2})])
def test_what_openvino_does_not_read_is_said_in_one_sentence(
    shared: Shared, tmp_path: Path, model_type: str, config: dict[str, Any]
) -> None:
    with pytest.raises(
        EngineError, match=r"OpenVINO 2\S+ does not read Scan-\d+ of model.onnx; compile the model for"
    ):
        compiled(shared_portable(shared, model_type, **config), tmp_path / "engine")
    assert not (tmp_path / "engine").exists()


def test_smollm2_makes_the_tokens_of_transformers(smollm2: Built) -> None:
    """64 greedy tokens in float32; a ragged batch along its own continuation."""
    engine = smollm2.engine(cache="grow", target="openvino", precision="fp32")
    session: Session = open_session(engine, threads=THREADS)
    (row,) = smollm2.rows("single")
    made = generate(session, [row.prompt], max_tokens=64, eos_ids=set())
    assert list(made.tokens[0]) == row.continuation[:64]
    for chunk in (0, 16):
        result = lead_session(session, smollm2.rows("ragged"), chunk=chunk)
        assert result.error < 1e-3
        assert result.tokens
    session.close()


def test_smollm2_in_int4_is_as_near_as_on_onnx_runtime(smollm2: Built, tmp_path: Path) -> None:
    from llmc.compiler.driver.verification import measure

    output = tmp_path / "engine"
    options = CompileOptions(
        ExportOptions(verify="on"), OptimizeOptions(target="openvino", precision="int4", effort="round")
    )
    report = compile_model(str(smollm2.source), output, options)
    golden = load_golden(output)
    assert golden is not None
    session = open_session(output)
    assert measure(session, golden).kl < GOLDEN_KL
    assert session.info.details["activations"] in {"bf16", "f32"}
    assert report.manifest.precision == "int4"
    session.close()
