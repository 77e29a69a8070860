"""compressed-tensors, against packing by hand and, where it is installed, the package itself."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized.compressed_tensors import compressed_layers
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array, draw, expand, pack, under

OUT, FEATURES, GROUPS = 64, 96, 3


def stated(bits: int = 4, **weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"weights": {"num_bits": bits, **weights}}}}


def packed(levels: Array, scales: Array, bits: int, zeros: Array | None = None) -> dict[str, Array]:
    tensors = {
        "weight_packed": pack(levels, bits),
        "weight_scale": scales,
        "weight_shape": np.array(levels.shape, np.int64),
    }
    return tensors if zeros is None else {**tensors, "weight_zero_point": np.ascontiguousarray(pack(zeros.T, bits).T)}


def the_layer(tensors: dict[str, Array], config: dict[str, Any]) -> QuantizedLayer:
    (found,) = compressed_layers(config, Parts(ArrayWeights(under("q", tensors))))
    assert found.name == "q.weight"
    assert sorted(found.parts) == sorted(f"q.{name}" for name in tensors)
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [True, False])
def test_packed_integers(bits: int, symmetric: bool) -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, bits, symmetric=symmetric)
    found = the_layer(packed(levels, scales, bits, None if symmetric else zeros), stated(bits))
    assert np.array_equal(found.rows(0, OUT), expand(levels, zeros, scales))
    assert np.array_equal(found.rows(9, 50), expand(levels, zeros, scales)[9:50])
    assert found.format == f"compressed-tensors int{bits}, groups of 32"


def test_a_scale_a_row() -> None:
    levels, zeros, scales = draw(OUT, FEATURES, 1, 8, symmetric=True)
    found = the_layer(packed(levels, scales, 8), stated(8))
    assert np.array_equal(found.rows(0, OUT), expand(levels, zeros, scales))
    assert found.format == "compressed-tensors int8, a scale a row"


def test_groups_in_the_order_of_activations() -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, 4, symmetric=True)
    index = np.random.default_rng(1).permutation(np.arange(FEATURES) // 32)
    tensors = {**packed(levels, scales, 4), "weight_g_idx": index.astype(np.int32)}
    found = the_layer(tensors, stated())
    assert np.array_equal(found.rows(0, OUT), expand(levels, zeros, scales, index))
    assert found.format.endswith("in the order of activations")
    # What was ordered and put back has an index of -1.
    tensors["weight_g_idx"] = np.full(FEATURES, -1, np.int32)
    assert np.array_equal(the_layer(tensors, stated()).rows(0, OUT), expand(levels, zeros, scales))


def test_layers_of_several_formats() -> None:
    """Each layer is what its tensors say; a plain one is none of them."""
    import ml_dtypes

    four, eight = draw(OUT, FEATURES, GROUPS, 4, symmetric=True), draw(OUT, FEATURES, GROUPS, 8, symmetric=True)
    codes = np.random.default_rng(0).normal(0, 30, (OUT, FEATURES)).astype(ml_dtypes.float8_e4m3fn)
    row = np.linspace(0.1, 0.2, OUT, dtype=np.float32)[:, None]
    tensors = {
        **under("a", packed(four[0], four[2], 4)),
        **under("b", packed(eight[0], eight[2], 8)),
        **under("c", {"weight": codes, "weight_scale": row, "input_scale": np.ones(1, np.float32)}),
        "d.weight": np.ones((OUT, FEATURES), np.float32),
    }
    config = {"config_groups": {str(bits): {"weights": {"num_bits": bits}} for bits in (4, 8)}}
    found = {layer.name: layer for layer in compressed_layers(config, Parts(ArrayWeights(tensors)))}
    assert found.keys() == {"a.weight", "b.weight", "c.weight"}
    assert np.array_equal(found["a.weight"].rows(0, OUT), expand(*four))
    assert np.array_equal(found["b.weight"].rows(0, OUT), expand(*eight))
    assert np.array_equal(found["c.weight"].rows(3, 5), codes[3:5].astype(np.float32) * row[3:5])
    assert found["c.weight"].format == "compressed-tensors float8, a scale a row"


def test_bits_that_do_not_fill_the_words() -> None:
    levels, _, scales = draw(OUT, FEATURES, GROUPS, 4)
    with pytest.raises(CheckpointError, match="are not 8 bits each"):
        the_layer(packed(levels, scales, 4), stated(8))


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"format": "marlin-24"}, "format marlin-24"),
        ({"sparsity_config": {"format": "sparse-24-bitmask"}}, "format sparse-24-bitmask"),
        ({"config_groups": {"a": {"format": "mxfp6-pack-quantized"}}}, "format mxfp6-pack-quantized"),
        ({"transform_config": {"config_groups": {"R1": {}}}}, "transform_config turns activations"),
    ],
)
def test_what_is_not_read_is_refused(config: dict[str, Any], words: str) -> None:
    with pytest.raises(UnsupportedModelError, match=words):
        compressed_layers(config, Parts(ArrayWeights({})))


def _arguments(kind: str) -> dict[str, Any]:
    return {
        "int4-group": {"num_bits": 4, "strategy": "group", "group_size": 32},
        "int4-zero": {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False},
        "int3-group": {"num_bits": 3, "strategy": "group", "group_size": 32},
        "int8-channel": {"num_bits": 8, "strategy": "channel"},
        "fp8-channel": {"num_bits": 8, "type": "float", "strategy": "channel"},
        "fp8-block": {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]},
        "nvfp4": {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16},
        "mxfp4": {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32},
    }[kind]


FORMATS = {
    "int4-group": "pack-quantized",
    "int4-zero": "pack-quantized",
    "int3-group": "pack-quantized",
    "int8-channel": "int-quantized",
    "fp8-channel": "float-quantized",
    "fp8-block": "float-quantized",
    "nvfp4": "nvfp4-pack-quantized",
    "mxfp4": "mxfp4-pack-quantized",
}


@pytest.mark.producers
@pytest.mark.parametrize("kind", FORMATS)
def test_values_are_those_of_the_package(kind: str) -> None:
    """Compressed and expanded again by the package, in float32."""
    torch = pytest.importorskip("torch")
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme

    scheme = QuantizationScheme(targets=["Linear"], weights=QuantizationArgs(**_arguments(kind)))
    state = _module(torch, kind, scheme.weights)
    compressor = BaseCompressor.get_value_from_registry(FORMATS[kind])
    stored = compressor.compress(state, scheme)
    theirs = compressor.decompress({name: values.clone() for name, values in stored.items()}, scheme)["weight"]
    tensors = {name: _array(torch, values) for name, values in stored.items()}
    config = {"config_groups": {"group_0": {"weights": _arguments(kind)}}}
    (found,) = compressed_layers(config, Parts(ArrayWeights(under("q", tensors))))
    # The package expands nvfp4 in bfloat16 alone, its scales included.
    rounding = 2.0**-7 if theirs.dtype == torch.bfloat16 and kind == "nvfp4" else 0
    np.testing.assert_allclose(found.rows(0, OUT), theirs.float().numpy(), rtol=rounding, atol=0)


def _array(torch: Any, values: Any) -> Array:
    import ml_dtypes

    if values.dtype == torch.float8_e4m3fn:
        return values.detach().view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    return values.detach().numpy()


def _module(torch: Any, kind: str, args: Any) -> dict[str, Any]:
    """A weight, and scales that bring it into the format's range."""
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(OUT, FEATURES, generator=generator)
    block = {"channel": (1, FEATURES), "block": (32, 32)}.get(args.strategy, (1, args.group_size or FEATURES))
    tiles = weight.reshape(OUT // block[0], block[0], FEATURES // block[1], block[1])
    peak = tiles.abs().amax(dim=(1, 3))
    floats = _arguments(kind).get("type") == "float"
    largest = (448 if args.num_bits == 8 else 6) if floats else 2 ** (args.num_bits - 1) - 1
    scale = peak / largest
    state = {"weight": weight, "weight_scale": scale}
    if kind == "int4-zero":
        state["weight_zero_point"] = torch.randint(-8, 8, scale.shape, generator=generator, dtype=torch.int8)
    if kind == "nvfp4":
        overall = torch.tensor([448 / float(scale.max())])
        state |= {"weight_global_scale": overall, "weight_scale": (scale * overall).to(torch.float8_e4m3fn).float()}
    if kind == "mxfp4":
        state["weight_scale"] = torch.exp2(torch.ceil(torch.log2(scale)))
    return state
