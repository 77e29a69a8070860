"""Where weights of a copy lie, for how long, and that they are those of the model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.graph.lazy_weight import MappedWeight, TensorWeight, as_weight
from llmc.compiler.graph.write_model import write_model
from llmc.compiler.ledger.inference import load_graph, run_graph
from llmc.compiler.ledger.weight_files import WeightFiles, own_copy

SIZE = 32


def product(weight: ir.TensorProtocol) -> ir.Model:
    """x @ w."""
    x = ir.val("x", ir.DataType.FLOAT, ["n", SIZE])
    w = ir.val("w", const_value=weight)
    node = ir.node("MatMul", [x, w], name="product")
    node.outputs[0].name, node.outputs[0].type = "y", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph([x], node.outputs, nodes=[node], initializers=[w], opset_imports={"": 23}, name="g")
    return ir.Model(graph, ir_version=10)


def weights(scale: float = 1.0) -> ir.TensorProtocol:
    array = scale * np.random.default_rng(0).standard_normal((SIZE, SIZE), np.float32)
    return TensorWeight(ir.tensor(array.astype(np.float32), name="w"), ir.DataType.FLOAT, transposed=False)


def assert_computes(copy: ir.Model, weight: ir.TensorProtocol) -> None:
    x = np.random.default_rng(1).standard_normal((3, SIZE), np.float32)
    y = run_graph(load_graph(copy), {"x": x})["y"]
    np.testing.assert_allclose(y, x @ weight.numpy(), rtol=1e-5, atol=1e-5)


def file_of(copy: ir.Model, name: str = "w") -> Path:
    tensor = copy.graph.initializers[name].const_value
    assert isinstance(tensor, ir.ExternalTensor)
    return Path(tensor.path)


def test_what_lies_in_a_file_stays_there(tmp_path: Path) -> None:
    (tmp_path / "artifact").mkdir()
    write_model(product(weights()), tmp_path / "artifact")
    model = ir.load(tmp_path / "artifact" / "model.onnx")
    files = WeightFiles(tmp_path / "weights")
    copy = files.copy(model)
    assert not (tmp_path / "weights").exists()
    assert file_of(copy) == tmp_path / "artifact" / "model.onnx.data"
    assert_computes(copy, weights())
    files.keep([])
    assert (tmp_path / "artifact" / "model.onnx.data").exists()


def test_a_lazy_weight_is_written_once(tmp_path: Path) -> None:
    model, files = product(weights()), WeightFiles(tmp_path / "weights")
    first, second = files.copy(model), files.copy(model)
    assert file_of(first) == file_of(second)
    assert len(list((tmp_path / "weights").iterdir())) == 1
    assert_computes(second, weights())
    assert isinstance(model.graph.initializers["w"].const_value, TensorWeight)


def test_files_go_with_the_last_copy_that_reads_them(tmp_path: Path) -> None:
    model, files = product(weights()), WeightFiles(tmp_path / "weights")
    old = files.copy(model)
    model.graph.initializers["w"].const_value = weights(2)
    new = files.copy(model)
    files.keep([old, new])
    assert file_of(old).exists()
    files.keep([new])
    assert not file_of(old).exists()
    assert_computes(new, weights(2))
    model.graph.initializers["w"].const_value = weights(3)
    assert_computes(files.copy(model), weights(3))


def test_what_was_removed_is_written_again(tmp_path: Path) -> None:
    model, files = product(weights()), WeightFiles(tmp_path / "weights")
    files.copy(model)
    files.keep([])
    assert_computes(files.copy(model), weights())


def test_one_place_is_seen_in_two_shapes(tmp_path: Path) -> None:
    """Scales of a table and of the head tied to it have the same bytes."""
    base = as_weight(ir.tensor(np.arange(SIZE * SIZE, dtype=np.float32).reshape(SIZE, SIZE)))
    flat = MappedWeight(base, (SIZE * SIZE,), ir.DataType.FLOAT, np.ravel, ("same",))
    square = MappedWeight(base, (SIZE, SIZE), ir.DataType.FLOAT, np.ravel, ("same",))
    model = product(square)
    model.graph.register_initializer(ir.val("flat", const_value=flat))
    copy = WeightFiles(tmp_path / "weights").copy(model)
    shapes = {name: list(value.const_value.shape) for name, value in copy.graph.initializers.items()}  # type: ignore[union-attr]
    assert shapes == {"w": [SIZE, SIZE], "flat": [SIZE * SIZE]}
    assert_computes(copy, square)


@pytest.mark.parametrize("kind", [ir.DataType.FLOAT16, ir.DataType.INT64])
def test_a_copy_keeps_its_types(kind: ir.DataType) -> None:
    model = product(weights())
    copy = own_copy(model)
    for graph in (model.graph,):
        for value in (*graph.inputs, *graph.outputs):
            value.dtype = kind
    assert [value.dtype for value in (*copy.graph.inputs, *copy.graph.outputs)] == [ir.DataType.FLOAT] * 2
