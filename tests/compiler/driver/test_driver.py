"""The driver for --target cuda: plans, strictness, weights that are left out, and a comparison that cannot be made.

One tiny random Llama; the runs themselves are those of ONNX Runtime's CPU provider.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import open_artifact, write_manifest
from llmc.compiler.artifact.golden import load_golden
from llmc.compiler.base.errors import ArtifactError, EngineError, FusionContractError, UsageError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver import capabilities, measured_artifact
from llmc.compiler.driver.driver import build, compile_model, export, optimize, plan, verify
from llmc.compiler.driver.verification import KL, LOGIT_ERROR, TOP1
from llmc.compiler.quantization.plan import make_plan
from llmc.passes.fusion.fuse_silu import FuseSilu
from llmc.passes.quantization.cache_numbers import LARGEST_INT8
from llmc.passes.quantization.quantize_cache import KEY_HEADROOM, VALUE_HEADROOM
from llmc.passes.quantization.quantize_weights import EMITTERS
from llmc.runtimes.lint.tables.kernel_table import load_kernels
from llmc.runtimes.onnxruntime import cuda_engine as onnxruntime_cuda_engine
from llmc.runtimes.onnxruntime.cpu_engine import OnnxRuntimeCpu
from llmc.runtimes.onnxruntime.operator_support import has_input

from ...end_to_end.tiny import save_model

FLOAT8 = {"chosen_by": "--effort auto", "accuracy_level": 0, "kept_zeros": []}
"""Fields of the pass that quantizes: there is no grid to keep."""
NO_WEIGHTS = ExportOptions(weights="none", verify="off")
KV_HEADS, DIM, LAYERS = 2, 16, 2
needs_operators = pytest.mark.skipif(
    not has_input("com.microsoft", "GatedRMSNorm", "gate"), reason="this ONNX Runtime has no GatedRMSNorm"
)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama") / "hf")


@pytest.fixture(scope="module")
def portable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With golden data, and so with ranges of keys and values."""
    path = tmp_path_factory.mktemp("portable") / "portable"
    export(str(source), path, ExportOptions(verify="on"))
    return path


@pytest.fixture(scope="module")
def whole(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An engine that was never compared."""
    path = tmp_path_factory.mktemp("whole") / "engine"
    compile_model(str(source), path, CompileOptions(ExportOptions(verify="off"), cuda()))
    return path


@pytest.fixture(autouse=True)
def no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a machine without one does, wherever the tests run."""
    for module in (measured_artifact, onnxruntime_cuda_engine):
        monkeypatch.setattr(module, "cuda_devices", list)


def cuda(**options: Any) -> OptimizeOptions:
    return OptimizeOptions(target="cuda", **options)


def planned(portable: Path, options: OptimizeOptions) -> dict[str, dict[str, Any]]:
    """Passes by name; of one that runs twice, the last."""
    return {item.name: dict(item.fields) for item in plan(portable, options)}


# --- plan -----------------------------------------------------------------------------------------------------------


ROUNDED = {"accuracy_level": 0, "chosen_by": "--effort auto"}


def test_a_plan_for_floats(portable: Path) -> None:
    passes = planned(portable, cuda())
    order = list(passes)
    assert order[-1] == "CheckCudaKernels"
    assert passes["ConvertFloat"] == {"to": "fp16", "wide_residual": False}
    assert passes["LowerAttention"] == {"query_seqlens": False, "qk_norm": True, "max_positions": 128}
    assert passes["PackQKV"] == {"with_qk_norm": True, "value_apart": False}
    assert passes["SetCacheIO"] == {"kind": "shared"}
    assert {"PackGateUp", "FuseGatedSilu", "LastTokenLogits"} < set(order)
    assert not {"QuantizeWeights", "QuantizeCache", "UseCpuMatMul", "TakeLengths"} & set(order)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"precision": "bf16"}, {"ConvertFloat": {"to": "bf16", "wide_residual": False}}),
        ({"precision": "int4", "activations": "bf16"}, {"ConvertFloat": {"to": "bf16", "wide_residual": False}}),
        ({"precision": "fp8"}, {"QuantizeWeights": {"plan": {"linear": "fp8@128"}, **FLOAT8}}),
        (
            {"precision": "fp8", "block_size": 32},
            {"QuantizeWeights": {"plan": {"linear": "fp8@32"}, **FLOAT8}},
        ),
        ({"cache_precision": "int8"}, {"QuantizeCache": {"kind": "int8"}}),
        ({"cache_precision": "fp8"}, {"QuantizeCache": {"kind": "fp8"}}),
        ({"cache": "grow"}, {"SetCacheIO": {"kind": "grow"}}),
        ({"context": 64}, {"LowerAttention": {"query_seqlens": False, "qk_norm": True, "max_positions": 64}}),
    ],
)
def test_a_plan_follows_the_options(portable: Path, options: dict[str, Any], expected: dict[str, Any]) -> None:
    passes = planned(portable, cuda(**options))
    for name, fields in expected.items():
        assert passes[name] == fields


@pytest.mark.parametrize(("precision", "block"), [("int4", 16), ("int8", 32)])
def test_a_plan_for_integers(portable: Path, precision: Any, block: int) -> None:
    """Weights that lie on no grid get zero points and no offsets; two products beat one and a Split."""
    passes = planned(portable, cuda(precision=precision))
    fields = passes["QuantizeWeights"]
    kinds = {"linear": precision, "head": "int8", "embedding": "int8", "experts": precision}
    names = {kind: f"{name}@32" for kind, name in kinds.items()} | {"linear": f"{precision}@{block}"}
    assert fields == {"plan": names, **ROUNDED, "kept_zeros": ["none", "integer", "offset"]}
    fields = planned(portable, cuda(precision=precision, symmetric=False))["QuantizeWeights"]
    assert fields["plan"] == {kind: f"{name}-zero@32" for kind, name in kinds.items()}
    assert "PackGateUp" not in passes
    order = list(passes)
    assert order.index("ConvertFloat") < order.index("QuantizeWeights"), "scales have the activations' type"


def test_all_logits_are_not_cut(portable: Path) -> None:
    assert "LastTokenLogits" not in planned(portable, cuda(logits="all"))


def test_a_context_beyond_the_models(portable: Path) -> None:
    with pytest.raises(UsageError, match="--context 4096 is more than the 128 positions"):
        plan(portable, cuda(context=4096))


# --- what is made ---------------------------------------------------------------------------------------------------


@needs_operators
@pytest.mark.parametrize(
    ("options", "error", "divergence", "agreement"),
    [
        pytest.param({}, (1e-3, 0.1), (3e-7, 2e-5), (0.95, 1.0), id="fp16"),
        pytest.param({"logits": "all"}, (1e-3, 0.1), (3e-7, 2e-5), (0.95, 1.0), id="all logits"),
        pytest.param({"cache": "grow"}, (1e-3, 0.1), (3e-7, 2e-5), (0.95, 1.0), id="a growing cache"),
        pytest.param({"precision": "int8"}, (0.03, 2.0), (5e-5, 1e-3), (0.9, 1.0), id="int8"),
        pytest.param({"precision": "int4"}, (0.3, 20.0), (0.01, 0.5), (0.3, 0.95), id="int4"),
        pytest.param({"cache_precision": "int8"}, (0.01, 1.0), (2e-5, 1e-3), (0.9, 1.0), id="an int8 cache"),
    ],
)
def test_the_engine_is_measured(
    portable: Path,
    tmp_path: Path,
    options: dict[str, Any],
    error: tuple[float, float],
    divergence: tuple[float, float],
    agreement: tuple[float, float],
) -> None:
    """Rounding is seen, in the size that the precision has."""
    made = optimize(portable, tmp_path / "target", cuda(**options)).manifest
    built = build(tmp_path / "target", tmp_path / "engine")
    assert (tmp_path / "engine" / "engine.onnx").exists() == (options.get("cache") != "grow")
    (graph,) = built.measured
    assert graph == ("engine.onnx" if options.get("cache") != "grow" else "model.onnx")
    assert made.measured == {}, "a GPU's graph is measured when it is an engine"
    for name, (least, most) in ((LOGIT_ERROR, error), (KL, divergence), (TOP1, agreement)):
        assert least <= built.measured[graph][name] <= most, name
    assert built.tolerances[graph][LOGIT_ERROR] > built.measured[graph][LOGIT_ERROR]
    assert (made.kind, made.target, built.kind) == ("target", "cuda", "engine")
    assert built.engine is not None
    assert built.engine.runtime == "onnxruntime-cuda"


@pytest.mark.parametrize(
    ("options", "types"),
    [
        ({"precision": "bf16"}, {ir.DataType.BFLOAT16}),
        ({"cache_precision": "fp8"}, {ir.DataType.FLOAT8E4M3FN}),
        ({"cache_precision": "int8", "precision": "bf16"}, {ir.DataType.INT8}),
    ],
)
def test_the_caches_type(
    portable: Path, tmp_path: Path, options: dict[str, Any], types: set[ir.DataType], caplog: pytest.LogCaptureFixture
) -> None:
    """The CPU provider has none of these kernels: the graph is written all the same, with a warning."""
    with caplog.at_level(logging.WARNING):
        optimize(portable, tmp_path / "target", cuda(**options))
        built = build(tmp_path / "target", tmp_path / "engine")
    graph = ir.load(tmp_path / "target" / "model.onnx").graph
    cache = [value for value in (*graph.inputs, *graph.outputs) if (value.name or "").startswith(("past", "present"))]
    assert {value.dtype for value in cache} == types
    if not built.measured:
        assert "not compared with the model: there is no GPU here, and the CPU does not run it" in caplog.text


def test_without_a_text_an_int8_caches_scales_come_from_the_golden_data(portable: Path, tmp_path: Path) -> None:
    golden = load_golden(portable)
    assert golden is not None
    assert golden.cache_ranges is not None
    optimize(portable, tmp_path / "target", cuda(cache_precision="int8"))
    graph = ir.load(tmp_path / "target" / "model.onnx").graph
    for layer in range(LAYERS):
        for kind, ranges, headroom in zip("kv", golden.cache_ranges, (KEY_HEADROOM, VALUE_HEADROOM), strict=True):
            tensor = graph.initializers[f"cache.{layer}.{kind}_scale"].const_value
            assert tensor is not None
            scale = tensor.numpy()
            assert scale.shape == (KV_HEADS, 1, DIM)
            reached = ranges[layer].reshape(KV_HEADS, 1, DIM)
            if kind == "k":  # Recorded at a few positions: partners in the rotation share the larger range.
                reached = np.maximum(reached, np.roll(reached, DIM // 2, axis=-1))
            np.testing.assert_allclose(scale, reached * headroom / LARGEST_INT8, rtol=1e-6)


def test_fp8_weights(portable: Path, tmp_path: Path) -> None:
    report = optimize(portable, tmp_path / "target", cuda(precision="fp8", block_size=32))
    graph = ir.load(tmp_path / "target" / "model.onnx").graph
    kernels = [node for node in graph if node.op_type == "MatMulBlockQuantizedFp8Weight"]
    # Packed projections, output, gate and up in one, down; and the head.
    assert len(kernels) == 4 * LAYERS + 1
    assert (report.manifest.precision, report.manifest.plan) == ("fp8", {"linear": "fp8@32"})
    assert report.shortfalls == ()


def test_a_manifest_keeps_the_plan(portable: Path, tmp_path: Path) -> None:
    """It says more than a precision: the head's scheme, block sizes, zero points. Engines keep their graph's."""
    options = cuda(precision="int4", head="int4", symmetric=False, block_size=16)
    report = optimize(portable, tmp_path / "target", options)
    assert report.manifest.plan == make_plan(options) == dict.fromkeys(EMITTERS, "int4-zero@16")
    assert build(tmp_path / "target", tmp_path / "engine").plan == report.manifest.plan
    assert open_artifact(portable).manifest.plan == {}


def test_two_ways_to_the_same_engine(whole: Path, portable: Path, tmp_path: Path) -> None:
    """Weights that were never read and weights of a graph on disk: the same bytes, the same operators."""
    optimize(portable, tmp_path / "target", cuda())
    build(tmp_path / "target", tmp_path / "long")
    assert (whole / "model.onnx.data").read_bytes() == (tmp_path / "long" / "model.onnx.data").read_bytes()
    for name in ("model.onnx", "engine.onnx"):
        first, second = ([node.op_type for node in ir.load(path / name).graph] for path in (whole, tmp_path / "long"))
        assert first == second


# --- strict ---------------------------------------------------------------------------------------------------------


def test_strict_passes_where_nothing_falls_short(portable: Path, tmp_path: Path) -> None:
    assert optimize(portable, tmp_path / "target", cuda(strict=True)).shortfalls == ()


def test_strict_names_what_would_run_on_the_cpu(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    known, unknown = load_kernels()
    without = {name: types for name, types in known.items() if name != "MatMul"}
    monkeypatch.setattr(capabilities, "load_kernels", lambda: (without, unknown))
    match = r"CheckCudaKernels: gpu fired \d+ of \d+ times; .*: the CUDA provider has no MatMul, .* \(and \d+ more\)"
    with pytest.raises(FusionContractError, match=match):
        optimize(portable, tmp_path / "target", cuda(strict=True))
    assert not (tmp_path / "target").exists()
    assert optimize(portable, tmp_path / "target", cuda()).shortfalls != ()


def test_strict_wants_the_ranges_of_an_int8_cache(portable: Path, tmp_path: Path) -> None:
    copy = copied(portable, tmp_path, without="golden.npz")
    with pytest.raises(FusionContractError, match="an int8 cache needs scales, and no ranges of keys and values"):
        optimize(copy, tmp_path / "target", cuda(cache_precision="int8", strict=True))


def copied(source: Path, folder: Path, *, without: str) -> Path:
    """An artifact that never had the file."""
    shutil.copytree(source, folder / "copy")
    (folder / "copy" / without).unlink()
    write_manifest(folder / "copy", replace(open_artifact(source).manifest, files={}))
    return folder / "copy"


# --- without weights ------------------------------------------------------------------------------------------------


def test_an_engine_without_weights_is_the_same_graph(source: Path, whole: Path, tmp_path: Path) -> None:
    made = compile_model(str(source), tmp_path / "alone", CompileOptions(NO_WEIGHTS, cuda()))
    for name in ("model.onnx", "engine.onnx"):
        assert (tmp_path / "alone" / name).read_bytes() == (whole / name).read_bytes(), name
    assert not (tmp_path / "alone" / "model.onnx.data").exists()
    assert "model.onnx.data" not in open_artifact(tmp_path / "alone").manifest.files
    assert (made.verification, made.manifest.measured) == (None, {})
    with pytest.raises(ArtifactError, match=r"was made without weights; .*random_weights"):
        onnxruntime_cuda_engine.open_on_host(tmp_path / "alone")
    with pytest.raises(UsageError, match="carries no golden data"):
        verify(tmp_path / "alone")


@pytest.mark.parametrize("step", ["optimize", "build"])
def test_a_graph_without_weights_goes_no_further(portable: Path, tmp_path: Path, step: str) -> None:
    if step == "optimize":
        source = copied(portable, tmp_path, without="model.onnx.data")
    else:
        optimize(portable, tmp_path / "target", cuda())
        source = copied(tmp_path / "target", tmp_path, without="model.onnx.data")
    with pytest.raises(ArtifactError, match=r"copy was made without weights \(model.onnx.data\)") as raised:
        _ = optimize(source, tmp_path / "out", cuda()) if step == "optimize" else build(source, tmp_path / "out")
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


# --- a comparison that cannot be made -------------------------------------------------------------------------------


class Refuses:
    """A session whose kernels refuse an input when they run."""

    def __init__(self) -> None:
        self.closed = False

    def close(self) -> None:
        self.closed = True


@pytest.fixture
def refused(monkeypatch: pytest.MonkeyPatch) -> Refuses:
    session = Refuses()

    def fail(*_: object) -> None:
        raise EngineError("q_norm_weight is not supported")

    monkeypatch.setattr(measured_artifact, "measure", fail)
    monkeypatch.setattr(onnxruntime_cuda_engine, "open_on_host", lambda _: session)
    monkeypatch.setattr(OnnxRuntimeCpu, "_open", lambda *_: (session, "ONNX Runtime's"))
    monkeypatch.setattr(onnxruntime_cuda_engine.OnnxRuntimeCuda, "open", lambda *_, **__: session)
    return session


def test_a_kernel_that_the_cpu_lacks_is_a_warning(
    portable: Path, tmp_path: Path, refused: Refuses, caplog: pytest.LogCaptureFixture
) -> None:
    optimize(portable, tmp_path / "target", cuda())
    made = build(tmp_path / "target", tmp_path / "engine")
    assert (made.measured, made.tolerances) == ({}, {})
    assert "the CPU does not run it (q_norm_weight is not supported)" in caplog.text
    assert refused.closed


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_where_the_target_is_here_it_is_an_error(
    portable: Path, tmp_path: Path, refused: Refuses, monkeypatch: pytest.MonkeyPatch, target: Any
) -> None:
    for module in (measured_artifact, onnxruntime_cuda_engine):
        monkeypatch.setattr(module, "cuda_devices", lambda: ["a GPU"])

    def make() -> None:
        optimize(portable, tmp_path / "target", OptimizeOptions(target=target))
        build(tmp_path / "target", tmp_path / "out")

    with pytest.raises(EngineError, match="q_norm_weight is not supported"):
        make()
    assert refused.closed
    assert not (tmp_path / "out").exists()


def test_passes_are_in_the_manifest(portable: Path, tmp_path: Path) -> None:
    optimize(portable, tmp_path / "target", cuda())
    engine = build(tmp_path / "target", tmp_path / "engine")
    names = [record.name for record in engine.passes]
    assert names.index(FuseSilu.__name__) < names.index("FuseGatedSilu") < names.index("TakeLengths")
    assert engine.max_context == 128
