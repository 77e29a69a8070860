"""Which options mean which passes, for runtimes that read ONNX's own operators."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from llmc.compiler.errors import UsageError
from llmc.compiler.geometry import ModelGeometry
from llmc.compiler.manifest import Manifest
from llmc.compiler.options import DEFAULT_CONTEXT, OptimizeOptions
from llmc.compiler.target_passes import engine_passes, target_passes
from llmc.passes.convert_float import ConvertFloat
from llmc.passes.graph_pass import GraphPass
from llmc.passes.pipeline import StandardTarget, standard_passes, tensorrt_engine_passes
from llmc.passes.quantize_standard import QuantizeStandard
from llmc.passes.quantize_weights import QuantizeWeights
from llmc.passes.use_standard_attention import UseStandardAttention

TENSORRT: list[Any] = ["tensorrt", "tensorrt-rtx"]


def only(passes: list[GraphPass], kind: type[Any]) -> Any:
    [found] = [item for item in passes if isinstance(item, kind)]
    return found


def quantization(geometry: ModelGeometry, **options: Any) -> QuantizeStandard:
    made = only(target_passes(geometry, OptimizeOptions(**options)), QuantizeStandard)
    assert isinstance(made, QuantizeStandard)
    return made


@pytest.mark.parametrize("target", TENSORRT)
@pytest.mark.parametrize(("given", "activations"), [({}, "fp16"), ({"precision": "bf16"}, "bf16")])
def test_tensorrt(geometry: ModelGeometry, target: Any, given: dict[str, Any], activations: Any) -> None:
    passes = target_passes(geometry, OptimizeOptions(target=target, context=512, logits="all", **given))
    assert passes == standard_passes(StandardTarget(512, "scatter", activations, "all"))
    assert only(passes, UseStandardAttention) == UseStandardAttention("scatter", 512)


@pytest.mark.parametrize("target", TENSORRT)
def test_float16_alone_needs_a_wide_residual_stream(geometry: ModelGeometry, target: Any) -> None:
    for activations, wide in (("fp16", True), ("bf16", False)):
        options = OptimizeOptions(target=target, precision="int8", activations=activations)
        _, to_half = [item for item in target_passes(geometry, options) if isinstance(item, ConvertFloat)]
        assert to_half == ConvertFloat(activations, wide_residual=wide)


def test_openvino_keeps_float32_and_a_growing_cache(geometry: ModelGeometry) -> None:
    passes = target_passes(geometry, OptimizeOptions(target="openvino", activations="bf16"))
    assert passes == standard_passes(StandardTarget(DEFAULT_CONTEXT, "concat"))
    assert only(passes, ConvertFloat) == ConvertFloat("fp32")


@pytest.mark.parametrize(
    ("options", "made"),
    [
        ({"precision": "int8"}, QuantizeStandard("int8")),
        ({"precision": "fp8"}, QuantizeStandard("fp8", block_size=128)),
        ({"precision": "nvfp4"}, QuantizeStandard("nvfp4")),
        ({"precision": "int4"}, QuantizeStandard("int4", offset=True)),
        ({"precision": "int4", "symmetric": False}, QuantizeStandard("int4", offset=True)),
        ({"precision": "int4", "symmetric": True, "block_size": 64}, QuantizeStandard("int4", block_size=64)),
        ({"precision": "int4", "head": "int4"}, QuantizeStandard("int4", "int4", offset=True)),
        ({"precision": "int8", "head": "int8"}, QuantizeStandard("int8", "int8")),
    ],
)
@pytest.mark.parametrize("target", TENSORRT)
def test_weights_for_tensorrt(
    geometry: ModelGeometry, target: Any, options: dict[str, Any], made: QuantizeStandard
) -> None:
    assert quantization(geometry, target=target, **options) == made


def test_openvino_takes_offsets_as_zero_points(geometry: ModelGeometry) -> None:
    assert quantization(geometry, target="openvino", precision="int4") == QuantizeStandard(
        "int4", offset=True, offset_form="zero_point"
    )
    assert not quantization(geometry, target="openvino", precision="int4", symmetric=True).offset
    assert quantization(geometry, target="openvino", precision="int8").weights == "int8"


@pytest.mark.parametrize("target", [*TENSORRT, "openvino"])
def test_floats_are_not_quantized(geometry: ModelGeometry, target: Any) -> None:
    kinds = {type(item) for item in target_passes(geometry, OptimizeOptions(target=target))}
    assert not kinds & {QuantizeStandard, QuantizeWeights}


@pytest.mark.parametrize("target", [*TENSORRT, "openvino"])
def test_a_context_beyond_the_models(geometry: ModelGeometry, target: Any) -> None:
    with pytest.raises(UsageError, match="--context 9000 is more than the 8192 positions"):
        target_passes(geometry, OptimizeOptions(target=target, context=9000))


def test_what_engines_are_built_of(manifest: Manifest) -> None:
    """TensorRT takes lengths instead of a mask; OpenVINO opens the graph as it is."""
    for target in TENSORRT:
        assert engine_passes(replace(manifest, target=target)) == tensorrt_engine_passes()
    assert engine_passes(replace(manifest, target="openvino")) == []
