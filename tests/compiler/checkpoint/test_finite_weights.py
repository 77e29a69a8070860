"""Values that are no numbers: found in every float type, and named by their tensor."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint import finite_weights
from llmc.compiler.checkpoint.finite_weights import all_finite, find_not_finite, require_finite
from llmc.compiler.checkpoint.weights import ArrayWeights
from llmc.compiler.graph.lazy_weight import SourceWeight, StackedWeight, TensorWeight, cast_weight
from llmc.compiler.graph.write_model import write_model

FLOATS = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("value", [np.nan, -np.nan, np.inf, -np.inf])
def test_what_is_no_number_is_seen_in_every_type(dtype: Any, value: float) -> None:
    values = np.zeros((3, 4), dtype)
    values[0, 0], values[1, 1] = ml_dtypes.finfo(dtype).max, ml_dtypes.finfo(dtype).min
    assert all_finite(values)
    values[2, 1] = value
    assert not all_finite(values)
    assert not all_finite(values.T)
    assert all_finite(values[:2])


def test_integers_and_nothing_at_all_are_finite() -> None:
    assert all_finite(np.full(3, 0x7F80_0000, np.int32))
    assert all_finite(np.zeros((0, 4), np.float32))
    assert all_finite(np.array(2.0, np.float32))
    assert not all_finite(np.array(np.nan, np.float32))


def weights(value: float, dtype: Any = np.float32) -> ArrayWeights:
    bad = np.arange(12, dtype=np.float32).reshape(6, 2).astype(dtype)
    bad[4, 1] = value
    return ArrayWeights({"model.norm.weight": np.ones(4, dtype), "model.up.weight": bad})


def source(value: float, dtype: Any = np.float32, to: ir.DataType = ir.DataType.FLOAT) -> SourceWeight:
    return SourceWeight(weights(value, dtype), "model.up.weight", (6, 2), to)


@pytest.mark.parametrize(("value", "name"), [(np.nan, "NaN"), (-np.inf, "infinity")])
@pytest.mark.parametrize("dtype", FLOATS[:3])
def test_a_weight_names_its_tensor_when_it_is_read(value: float, name: str, dtype: Any) -> None:
    with pytest.raises(CheckpointError, match=rf"^model.up.weight holds {name} at \[4, 1\] \(1 of 12 values"):
        source(value, dtype).numpy()
    assert np.array_equal(source(value, dtype).rows(0, 4), np.arange(8).reshape(4, 2))


def test_a_number_beyond_the_graphs_type_names_its_tensor_and_the_type() -> None:
    sentence = r"^model.up.weight holds 7e\+04, and float16 ends at 6.55e\+04: keep its weights in float32"
    with pytest.raises(CheckpointError, match=sentence):
        source(7e4, to=ir.DataType.FLOAT16).numpy()
    assert source(7e4, to=ir.DataType.BFLOAT16).numpy()[4, 1] == 70144
    with pytest.raises(CheckpointError, match=sentence):
        cast_weight(StackedWeight([source(1), source(7e4)], transposed=True), ir.DataType.FLOAT16).numpy()
    tensor = ir.tensor(np.full((2, 2), 7e4, np.float32), name="model.up.weight")
    with pytest.raises(CheckpointError, match=sentence):
        cast_weight(TensorWeight(tensor, ir.DataType.FLOAT, transposed=False), ir.DataType.FLOAT16).numpy()


def test_a_search_goes_on_from_block_to_block(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite_weights, "_BYTES", 16)
    names = ["model.up.weight", "model.norm.weight"]
    assert find_not_finite(weights(0), names) is None
    found = find_not_finite(weights(np.nan), names)
    assert found is not None
    assert found.startswith("model.up.weight holds NaN at [4, 1] ")


def test_numbers_are_let_through() -> None:
    require_finite("w", np.array([1.0, 65504], np.float32), np.array([1.0, 65504], np.float16))


@pytest.mark.parametrize("size", [4, 4096])
def test_a_written_graph_says_it_whether_the_tensor_stays_in_it_or_not(tmp_path: Path, size: int) -> None:
    values = np.ones(size, np.float32)
    values[2] = np.nan
    weight = SourceWeight(ArrayWeights({"w": values}), "w", (size,), ir.DataType.FLOAT)
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([size])
    value = ir.Value(name="w", type=kind, shape=shape, const_value=weight)
    graph = ir.Graph([], [], nodes=[], initializers=[value], opset_imports={"": 24})
    with pytest.raises(CheckpointError, match=r"^w holds NaN at"):
        write_model(ir.Model(graph, ir_version=10), tmp_path)
