"""Which options mean which passes."""

from __future__ import annotations

import itertools
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import Contract
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.geometry import ModelGeometry
from llmc.compiler.base.options import DEFAULT_CONTEXT, OptimizeOptions
from llmc.compiler.driver.capabilities import Capabilities
from llmc.compiler.driver.target_passes import Numbers, engine_passes, max_context, target_passes
from llmc.compiler.quantization.plan import kept_zeros, make_plan, value_stands_alone
from llmc.passes.engine.check_cuda_kernels import CheckCudaKernels
from llmc.passes.fusion.pack_qkv import PackQKV
from llmc.passes.graph_pass import GraphPass
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.lower_moe import LowerMoE
from llmc.passes.lowering.use_standard_attention import UseStandardAttention
from llmc.passes.pipeline import (
    GraphRequest,
    cpu_engine_passes,
    cpu_passes,
    cuda_engine_passes,
    cuda_passes,
    standard_passes,
    tensorrt_engine_passes,
)
from llmc.passes.quantization.cache_numbers import Reach
from llmc.passes.quantization.quantize_cache import QuantizeCache
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from ...passes.plans import in_blocks, in_fp8, in_standard

TENSORRT: list[Any] = ["tensorrt", "tensorrt-rtx"]
LAYOUT: Any = {"layout": "nbits"}
ALL = ("none", "integer", "offset")
NEW = Capabilities(query_seqlens=True, expert_kernels=True)


def only(passes: list[GraphPass], kind: type[Any]) -> Any:
    [found] = [item for item in passes if isinstance(item, kind)]
    return found


def quantization(geometry: ModelGeometry, **options: Any) -> QuantizeWeights:
    made = only(target_passes(geometry, OptimizeOptions(**options), NEW), QuantizeWeights)
    assert isinstance(made, QuantizeWeights)
    return made


@pytest.mark.parametrize("target", TENSORRT)
@pytest.mark.parametrize(("given", "activations"), [({}, "fp16"), ({"precision": "bf16"}, "bf16")])
def test_tensorrt(geometry: ModelGeometry, target: Any, given: dict[str, Any], activations: Any) -> None:
    passes = target_passes(geometry, OptimizeOptions(target=target, context=512, logits="all", **given), NEW)
    assert passes == standard_passes(GraphRequest(512, activations, logits="all"))
    assert only(passes, UseStandardAttention) == UseStandardAttention("scatter", 512)


@pytest.mark.parametrize("target", TENSORRT)
def test_float16_alone_needs_a_wide_residual_stream(geometry: ModelGeometry, target: Any) -> None:
    for activations, wide in (("fp16", True), ("bf16", False)):
        options = OptimizeOptions(target=target, precision="int8", activations=activations)
        _, to_half = [item for item in target_passes(geometry, options, NEW) if isinstance(item, ConvertFloat)]
        assert to_half == ConvertFloat(activations, wide_residual=wide)


def test_openvino_keeps_float32_and_a_growing_cache(geometry: ModelGeometry) -> None:
    passes = target_passes(geometry, OptimizeOptions(target="openvino", activations="bf16"), NEW)
    assert passes == standard_passes(GraphRequest(DEFAULT_CONTEXT, cache="grow"))
    assert only(passes, ConvertFloat) == ConvertFloat("fp32")


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"precision": "int8"}, in_standard("int8")),
        ({"precision": "fp8"}, in_standard("fp8", block_size=128)),
        ({"precision": "nvfp4"}, in_standard("nvfp4")),
        ({"precision": "int4"}, in_standard("int4", offset=True)),
        ({"precision": "int4", "symmetric": False}, in_standard("int4", offset=True)),
        ({"precision": "int4", "symmetric": True, "block_size": 64}, in_standard("int4", block_size=64)),
        ({"precision": "int4", "head": "int4"}, in_standard("int4", "int4", offset=True)),
        ({"precision": "int8", "head": "int8"}, in_standard("int8", "int8")),
    ],
)
@pytest.mark.parametrize("target", TENSORRT)
def test_weights_for_tensorrt(
    geometry: ModelGeometry, target: Any, options: dict[str, Any], made: QuantizeWeights
) -> None:
    assert quantization(geometry, target=target, **options) == made


def test_openvino_takes_offsets_as_zero_points(geometry: ModelGeometry) -> None:
    assert quantization(geometry, target="openvino", precision="int4") == in_standard(
        "int4", offset=True, offset_form="zero_point"
    )
    assert quantization(geometry, target="openvino", precision="int4", symmetric=True) == in_standard("int4")
    assert quantization(geometry, target="openvino", precision="int8") == in_standard("int8")


@pytest.mark.parametrize("target", [*TENSORRT, "openvino"])
def test_floats_are_not_quantized(geometry: ModelGeometry, target: Any) -> None:
    kinds = {type(item) for item in target_passes(geometry, OptimizeOptions(target=target), NEW)}
    assert not kinds & {QuantizeWeights}


@pytest.mark.parametrize("target", ["cpu", "cuda", *TENSORRT, "openvino"])
def test_a_context_beyond_the_models(geometry: ModelGeometry, target: Any) -> None:
    with pytest.raises(UsageError, match="--context 9000 is more than the 8192 positions"):
        target_passes(geometry, OptimizeOptions(target=target, context=9000), NEW)


@pytest.mark.parametrize(
    ("made_for", "asked", "context"),
    [
        (None, None, DEFAULT_CONTEXT), (2048, None, 2048), (131072, None, DEFAULT_CONTEXT), (2048, 2048, 2048),
        (131072, 131072, 131072), (None, 40000, 40000), (2048, 2, 2),
    ],
)  # fmt: skip
def test_the_longest_context(geometry: ModelGeometry, made_for: int | None, asked: int | None, context: int) -> None:
    """The model's own, at most the default, unless the user asks for another that the model was made for."""
    model = replace(geometry, max_position_embeddings=made_for)
    assert max_context(model, OptimizeOptions(context=asked)) == context
    assert only(target_passes(model, OptimizeOptions(context=asked), NEW), LowerAttention).max_positions == context


# --- ONNX Runtime ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"precision": "fp32", "layout": "auto"}, None),
        ({"precision": "int4"}, {"bits": 4, "offset": True}),
        (
            {"precision": "int4", "keep_grid": True},
            {"bits": 4, "offset": True, "kept_zeros": ALL},
        ),
        ({"precision": "int8", "keep_grid": True}, {"bits": 8, "kept_zeros": ALL}),
        ({"precision": "int8", "symmetric": False}, {"bits": 8, "offset": True}),
        ({"precision": "int4", "symmetric": True}, {"bits": 4}),
        ({"precision": "int4", "head": "int4", "block_size": 64}, {"offset": True, "head_bits": 4, "block_size": 64}),
        ({"precision": "int8", "head": "int8", "keep_grid": False}, {"bits": 8}),
    ],
)
def test_weights_for_the_runtimes_own_operators(
    geometry: ModelGeometry, options: dict[str, Any], made: dict[str, Any] | None
) -> None:
    """Offsets where four bits need them, never zero points; products with activations of 8 bits."""
    defaults = {"bits": 4, "block_size": 32, "symmetric": True, "offset": False, "head_bits": 8, "accuracy_level": 4}
    quantization = None if made is None else in_blocks(**defaults | made)
    passes = target_passes(
        geometry, OptimizeOptions(cache="grow", logits="all", context=64, **(LAYOUT | options)), NEW
    )
    assert passes == cpu_passes(
        GraphRequest(
            max_positions=64,
            cache="grow",
            logits="all",
            quantization=quantization,
        )
    )


@pytest.mark.parametrize("precision", ["int4", "int5", "int6", "int8"])
def test_packed_weights_for_the_cpu(geometry: ModelGeometry, precision: Any) -> None:
    """Values stand alone where the plan gives them bits of their own."""
    options = OptimizeOptions(precision=precision, context=64)
    plan = make_plan(options)
    request = GraphRequest(
        64, quantization=QuantizeWeights(plan, 4, kept_zeros(options)), value_apart=value_stands_alone(plan)
    )
    assert target_passes(geometry, options, NEW) == cpu_passes(request)
    assert only(cpu_passes(request), PackQKV) == PackQKV(value_apart=value_stands_alone(plan))
    apart = cpu_passes(replace(request, value_apart=True))
    assert only(apart, PackQKV) == PackQKV(value_apart=True)


@pytest.mark.parametrize("has", [True, False])
def test_the_cpus_kernels_are_those_of_the_runtime(geometry: ModelGeometry, has: bool) -> None:
    passes = target_passes(geometry, OptimizeOptions(), Capabilities(query_seqlens=has, expert_kernels=not has))
    assert only(passes, LowerAttention).query_seqlens is has
    assert only(passes, LowerMoE).kernel is not has


def test_cudas_kernels_are_compared_with(geometry: ModelGeometry) -> None:
    known = Capabilities(False, False, {"MatMul": frozenset({"float16"})}, frozenset({"Loop"}))
    passes = target_passes(geometry, OptimizeOptions(target="cuda"), known)
    assert passes[-1] == CheckCudaKernels(known.cuda_kernels, known.cuda_unknown)


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({}, {}),
        ({"precision": "bf16"}, {"activations": "bf16"}),
        ({"cache": "grow", "logits": "all"}, {"cache": "grow", "logits": "all"}),
        ({"precision": "fp8"}, {"quantization": in_fp8(128)}),
        ({"precision": "fp8", "block_size": 64}, {"quantization": in_fp8(64)}),
        ({"precision": "int4"},
         {"quantization": {"bits": 4, "linear_block": 16, "kept_zeros": ALL}, "pack_gate_up": False}),
        ({"precision": "int4", "symmetric": False},
         {"quantization": {"bits": 4, "symmetric": False}, "pack_gate_up": False}),
        ({"precision": "int8", "activations": "bf16"},
         {"quantization": {"bits": 8, "kept_zeros": ALL}, "pack_gate_up": False,
          "activations": "bf16"}),
        ({"precision": "int8", "head": "int4", "block_size": 16},
         {"quantization": {"bits": 8, "head_bits": 4, "block_size": 16}, "pack_gate_up": False}),
        ({"cache_precision": "fp8"}, {"quantized_cache": QuantizeCache("fp8")}),
        ({"cache_precision": "int8"}, {"quantized_cache": QuantizeCache("int8")}),
    ],
)  # fmt: skip
def test_cuda(geometry: ModelGeometry, options: dict[str, Any], made: dict[str, Any]) -> None:
    """Offsets of weights that have some are multiplied with means; activations are not rounded to 8 bits."""
    defaults = {"bits": 4, "block_size": 32, "symmetric": True, "offset": False, "head_bits": 8, "accuracy_level": 0}
    defaults["by_mean"] = True
    if isinstance(made.get("quantization"), dict):
        made = made | {"quantization": in_blocks(**defaults | made["quantization"])}
    passes = target_passes(geometry, OptimizeOptions(target="cuda", context=512, **options), NEW)
    assert passes == cuda_passes(GraphRequest(512, **{"activations": "fp16", "query_seqlens": False} | made))


def test_an_int8_cache_has_the_ranges_that_were_recorded(geometry: ModelGeometry) -> None:
    golden: Any = SimpleNamespace(cache_ranges=(np.full((3, 4), 12.7), np.full((3, 4), 25.4)))
    options = OptimizeOptions(target="cuda", cache_precision="int8")
    cache = only(target_passes(geometry, options, NEW, golden), QuantizeCache)
    assert len(cache.scales) == 3
    np.testing.assert_allclose(cache.scales[2][0], 0.11, rtol=1e-6)
    np.testing.assert_allclose(cache.scales[2][1], 0.25, rtol=1e-6)
    assert not cache.everywhere
    assert only(target_passes(geometry, options, NEW), QuantizeCache).scales == ()


def test_ranges_over_a_text_go_before_those_that_were_recorded(geometry: ModelGeometry) -> None:
    golden: Any = SimpleNamespace(cache_ranges=(np.full((3, 4), 12.7), np.full((3, 4), 25.4)))
    reaches = [Reach(np.full(4, -x), np.full(4, x), np.zeros(4), np.zeros(4)) for x in (127.0, 254.0)]
    numbers = Numbers(cache_ranges=((reaches[0], reaches[1]),))
    for options, golden_data in itertools.product(({"precision": "int4"}, {}), (golden, None)):
        asked = OptimizeOptions(target="cuda", cache_precision="int8", **options)
        cache = only(target_passes(geometry, asked, NEW, golden_data, numbers), QuantizeCache)
        assert cache.everywhere
        np.testing.assert_allclose(cache.scales, [[[1.1] * 4, [2.5] * 4]], rtol=1e-6)
    assert not [
        item
        for item in target_passes(geometry, OptimizeOptions(target="cuda"), NEW, golden, numbers)
        if isinstance(item, QuantizeCache)
    ]


@pytest.mark.parametrize(
    ("contract", "takes_lengths"),
    [
        (Contract(rows="slot0", cache="shared"), True),
        (Contract(rows="slot0", cache="grow"), False),
        (Contract(rows="mask", cache="shared"), False),
    ],
)
def test_a_cuda_engine_takes_lengths_where_attention_does(
    manifest: Manifest, contract: Contract, takes_lengths: bool
) -> None:
    target = replace(manifest, target="cuda", contract=contract)
    assert engine_passes(target) == (cuda_engine_passes() if takes_lengths else [])


@pytest.mark.parametrize(
    ("precision", "kernels"), [("int4", True), ("int5", True), ("int6", True), ("int8", True), ("fp32", False)]
)
def test_a_cpu_engine_has_kernels_for_integers(manifest: Manifest, precision: Any, kernels: bool) -> None:
    made = engine_passes(replace(manifest, target="cpu", precision=precision))
    assert made == (cpu_engine_passes() if kernels else [])


def test_what_engines_are_built_of(manifest: Manifest) -> None:
    """TensorRT takes lengths instead of a mask; OpenVINO opens the graph as it is."""
    for target in TENSORRT:
        assert engine_passes(replace(manifest, target=target)) == tensorrt_engine_passes()
    assert engine_passes(replace(manifest, target="openvino")) == []
