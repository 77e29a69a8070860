"""GPTQ's layout: versions, widths, orders of groups.

Tensors are packed here by the layout's description and, where it is installed, by AutoGPTQ, whose layers then say
themselves what they stand for.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.quantized import layer
from llmc.compiler.checkpoint.quantized.gptq import gptq_layers
from llmc.compiler.checkpoint.quantized.layer import Parts
from llmc.compiler.checkpoint.weights import ArrayWeights

from .packing import Array, draw, expand, gptq, under

OUT, FEATURES, GROUPS = 64, 96, 3


def the_layer(tensors: dict[str, Array], **config: Any) -> layer.QuantizedLayer:
    (found,) = gptq_layers(config, Parts(ArrayWeights(under("q", tensors))))
    assert (found.name, found.shape) == ("q.weight", (OUT, FEATURES))
    assert sorted(found.parts) == sorted(f"q.{name}" for name in tensors)
    return found


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("version", [1, 2])
def test_values_are_those_of_the_formula(bits: int, version: int) -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, bits)
    stated = {"checkpoint_format": "gptq_v2"} if version == 2 else {}
    found = the_layer(gptq(levels, zeros, scales, bits, version=version), bits=bits, **stated)
    assert np.array_equal(found.rows(0, OUT), expand(levels, zeros, scales))
    assert np.array_equal(found.rows(5, 23), expand(levels, zeros, scales)[5:23])
    assert found.format == f"GPTQ int{bits}, groups of 32"


def test_groups_in_the_order_of_activations() -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, 4)
    index = np.random.default_rng(1).permutation(np.arange(FEATURES) // 32)
    found = the_layer(gptq(levels, zeros, scales, 4, index), bits=4, desc_act=True)
    assert np.array_equal(found.rows(0, OUT), expand(levels, zeros, scales, index))
    assert found.format == "GPTQ int4, 3 groups in the order of activations"


def test_one_group_and_no_index() -> None:
    levels, zeros, scales = draw(OUT, FEATURES, 1, 4)
    tensors = gptq(levels, zeros, scales, 4)
    del tensors["g_idx"]
    assert np.array_equal(the_layer(tensors, bits=4, group_size=-1).rows(0, OUT), expand(levels, zeros, scales))


def test_a_layer_has_its_own_bits() -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, 8)
    found = the_layer(gptq(levels, zeros, scales, 8), bits=4, dynamic={"q": {"bits": 8}})
    assert np.array_equal(found.rows(0, OUT), expand(levels, zeros, scales))


def test_columns_are_kept_a_few_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, 4)
    monkeypatch.setattr(layer, "_SLAB_BYTES", 300)
    parts = Parts(ArrayWeights(under("q", gptq(levels, zeros, scales, 4))))
    (found,) = gptq_layers({"bits": 4}, parts)
    pieces = [found.rows(start, min(start + 13, OUT)) for start in range(0, OUT, 13)]
    assert np.array_equal(np.concatenate(pieces), expand(levels, zeros, scales))
    assert len(parts._slabs) == 4
    assert all(slab.nbytes <= 300 for slab in parts._slabs.values())


@pytest.mark.parametrize("stated", [{"checkpoint_format": "marlin"}, {"is_marlin_format": True}])
def test_a_layout_of_one_kernel_is_refused(stated: dict[str, Any]) -> None:
    with pytest.raises(UnsupportedModelError, match="in the layout marlin"):
        gptq_layers({"bits": 4, **stated}, Parts(ArrayWeights({})))


@pytest.mark.parametrize("part", ["qzeros", "scales"])
def test_parts_that_are_missing_or_of_another_shape(part: str) -> None:
    tensors = gptq(*draw(OUT, FEATURES, GROUPS, 4), 4)
    with pytest.raises(CheckpointError, match="do not belong together"):
        the_layer({**tensors, part: tensors[part][:, 1:]}, bits=4)
    with pytest.raises(CheckpointError, match=rf"q\.{part} is not in the checkpoint"):
        the_layer({name: values for name, values in tensors.items() if name != part}, bits=4)


def test_a_group_that_is_not_there() -> None:
    tensors = gptq(*draw(OUT, FEATURES, GROUPS, 4), 4)
    with pytest.raises(CheckpointError, match="names groups that"):
        the_layer({**tensors, "g_idx": tensors["g_idx"] + 1}, bits=4)


def auto_gptq(kind: str) -> Any:
    """A module of AutoGPTQ with a layer in PyTorch's own operators.

    It is loaded alone: the package as a whole wants a transformers of its day.
    """
    package = importlib.util.find_spec("auto_gptq")
    if package is None or package.origin is None:
        pytest.skip("AutoGPTQ is not installed")
    pytest.importorskip("torch")
    path = Path(package.origin).parent / "nn_modules" / "qlinear" / f"qlinear_{kind}.py"
    spec = importlib.util.spec_from_file_location(f"auto_gptq_{kind}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.QuantLinear


def packed_by_auto_gptq(kind: str, bits: int, index: Array | None = None) -> Any:
    """A layer of AutoGPTQ, packed by it; its zero points are 1 and more, with less than which it cannot."""
    layer = auto_gptq(kind)(bits, FEATURES // GROUPS, FEATURES, OUT, bias=False)
    import torch

    levels, zeros, scales = draw(OUT, FEATURES, GROUPS, bits)
    zeros, scales = zeros.clip(1), scales.astype(np.float32)
    linear = torch.nn.Linear(FEATURES, OUT, bias=False)
    linear.weight.data = torch.from_numpy(expand(levels, zeros, scales, index))
    tensors = [torch.from_numpy(part.astype(np.float32)) for part in (scales, zeros)]
    layer.pack(linear, *tensors, g_idx=None if index is None else torch.from_numpy(index.astype(np.int32)))
    return layer


def read_and_said(layer: Any, **config: Any) -> tuple[Array, Array]:
    """The weight [out, in] as llmc reads it, and as the layer multiplies with it."""
    import torch

    tensors = {name: getattr(layer, name).numpy() for name in ("qweight", "qzeros", "scales", "g_idx")}
    said: Array = layer(torch.eye(FEATURES)).T.numpy()
    return the_layer(tensors, **config).rows(0, OUT), said


@pytest.mark.producers
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_values_are_those_of_auto_gptq(bits: int) -> None:
    read, said = read_and_said(packed_by_auto_gptq("cuda_old", bits), bits=bits)
    assert np.array_equal(read, said)
    assert len(np.unique(read)) > 2**bits


@pytest.mark.producers
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_the_order_of_activations_is_that_of_auto_gptq(bits: int) -> None:
    index = np.random.default_rng(1).permutation(np.arange(FEATURES) // (FEATURES // GROUPS))
    read, said = read_and_said(packed_by_auto_gptq("cuda", bits, index), bits=bits, desc_act=True)
    assert np.array_equal(read, said)


@pytest.mark.producers
def test_the_largest_stored_zero_point_is_zero_in_auto_gptq() -> None:
    layer = packed_by_auto_gptq("cuda_old", 4)
    layer.qzeros[:] = -1
    read, said = read_and_said(layer, bits=4)
    assert np.array_equal(read, said)
    assert read.min() == 0
