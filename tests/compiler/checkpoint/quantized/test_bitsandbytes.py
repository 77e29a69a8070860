"""bitsandbytes' layouts, by their formula and, where it is installed, against the package's own code on the CPU."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.quantized.bitsandbytes import bitsandbytes_layers
from llmc.compiler.checkpoint.quantized.layer import Parts, QuantizedLayer
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array

OUT, FEATURES, BLOCK = 12, 40, 32
"""Blocks end within rows: 40 is no multiple of 32."""


def the_layer(tensors: dict[str, Array]) -> QuantizedLayer:
    (found,) = bitsandbytes_layers({}, Parts(ArrayWeights(tensors)))
    assert found.name == "q.weight"
    assert set(found.parts) == tensors.keys()
    return found


def table_codes(*, nested: bool) -> tuple[dict[str, Array], Array]:
    """Tensors of a layer, and its values."""
    draws = np.random.default_rng(0)
    codes = draws.integers(0, 16, OUT * FEATURES)
    table = np.sort(draws.uniform(-1, 1, 16)).astype(np.float32)
    blocks = OUT * FEATURES // BLOCK
    stated: dict[str, Any] = {"shape": [OUT, FEATURES], "blocksize": BLOCK, "quant_type": "nf4"}
    tensors = {
        "q.weight": (codes[::2] << 4 | codes[1::2]).astype(np.uint8)[:, None],
        "q.weight.quant_map": table,
    }
    if nested:
        stated |= {"nested_blocksize": 4, "nested_offset": 0.05}
        outer, outer_table = draws.uniform(0.1, 0.2, -(-blocks // 4)).astype(np.float32), np.linspace(-1, 1, 256)
        inner = draws.integers(0, 256, blocks).astype(np.uint8)
        tensors |= {
            "q.weight.absmax": inner,
            "q.weight.nested_absmax": outer,
            "q.weight.nested_quant_map": outer_table.astype(np.float32),
        }
        absmax = outer_table.astype(np.float32)[inner] * outer[np.arange(blocks) // 4] + np.float32(0.05)
    else:
        absmax = tensors["q.weight.absmax"] = draws.uniform(0.1, 0.2, blocks).astype(np.float32)
    tensors["q.weight.quant_state.bitsandbytes__nf4"] = np.frombuffer(json.dumps(stated).encode(), np.uint8)
    values = table[codes] * absmax[np.arange(OUT * FEATURES) // BLOCK]
    return tensors, values.reshape(OUT, FEATURES)


@pytest.mark.parametrize("nested", [False, True])
def test_codes_of_a_table(nested: bool) -> None:
    tensors, values = table_codes(nested=nested)
    found = the_layer(tensors)
    assert np.array_equal(found.rows(0, OUT), values)
    assert np.array_equal(found.rows(3, 8), values[3:8])
    assert found.format == "bitsandbytes nf4, blocks of 32"


def test_integers_with_a_scale_a_row() -> None:
    draws = np.random.default_rng(0)
    codes, scales = draws.integers(-127, 128, (OUT, FEATURES)).astype(np.int8), draws.uniform(1, 2, OUT)
    tensors = {"q.weight": codes, "q.SCB": scales.astype(np.float32), "q.weight_format": np.array(0, np.uint8)}
    found = the_layer(tensors)
    np.testing.assert_allclose(found.rows(2, 9), codes[2:9] * scales[2:9, None] / 127, rtol=3e-7)
    with pytest.raises(CheckpointError, match=r"q\.weight and q\.SCB do not belong together"):
        the_layer({**tensors, "q.weight_format": np.array(1, np.uint8)})


@pytest.mark.parametrize(
    ("part", "values"), [("absmax", np.ones(3, np.float32)), ("quant_state.bitsandbytes__nf4", np.zeros(2, np.uint8))]
)
def test_parts_that_do_not_belong_together(part: str, values: Array) -> None:
    tensors, _ = table_codes(nested=False)
    with pytest.raises(CheckpointError, match=r"do not belong together|does not say how"):
        the_layer({**tensors, f"q.weight.{part}": values})


@pytest.mark.producers
@pytest.mark.parametrize("kind", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
def test_values_are_those_of_the_package(kind: str, nested: bool) -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    # Rows of whole blocks: where they are not, 0.50's kernel for the CPU takes the blocks of other rows.
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0))
    packed, state = functional.quantize_4bit(weight, blocksize=64, quant_type=kind, compress_statistics=nested)
    tensors = {"q.weight": packed.numpy()}
    tensors |= {f"q.weight.{name}": values.numpy() for name, values in state.as_dict(packed=True).items()}
    theirs = functional.dequantize_4bit(packed, state).numpy()
    # Both multiply in float32; a kernel may fuse the product of nested blocks with their offset.
    np.testing.assert_allclose(the_layer(tensors).rows(0, 64), theirs, rtol=3e-7 if nested else 0, atol=0)


@pytest.mark.producers
def test_integers_are_those_of_the_package() -> None:
    torch = pytest.importorskip("torch")
    functional = pytest.importorskip("bitsandbytes.functional")
    codes = torch.randint(-127, 128, (64, 96), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    scales = torch.rand(64, generator=torch.Generator().manual_seed(1))
    theirs = functional.int8_vectorwise_dequant(codes, scales).numpy()
    assert np.array_equal(the_layer({"q.weight": codes.numpy(), "q.SCB": scales.numpy()}).rows(0, 64), theirs)
