"""The body of a packed product in ONNX Runtime's operators, against the formula."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime as ort
import pytest

from llmc.compiler.graph.operators import nbits
from llmc.compiler.graph.operators.nbits_runtime import RuntimeVariant, function

from ....passes.graphs import draw, run
from .packed_calls import NAMES, call, random_rows, with_body


@pytest.mark.parametrize(("n", "k", "axes"), [(24, 128, ("b", "s")), (7, 100, ("t",)), (5, 33, ("a", "b", "c"))])
@pytest.mark.parametrize("name", NAMES)
def test_it_multiplies_with_what_numbers_stand_for(name: str, n: int, k: int, axes: tuple[str, ...]) -> None:
    x = draw(*(2, 3, 4)[: len(axes)], k, seed=1)
    model, node, weight = call(nbits.MATMUL, random_rows(n, k), name, axes)
    with_body(model, node, function(RuntimeVariant(nbits.variant_of(node), 0)))
    np.testing.assert_allclose(run(model, {"x": x})["y"], x @ weight.T, rtol=1e-5, atol=2e-5)
    # With constants folded, activations are rounded to 8 bits.
    model, node, weight = call(nbits.MATMUL, random_rows(n, k), name, axes)
    proto = ir.to_proto(with_body(model, node, function(RuntimeVariant(nbits.variant_of(node), 4))))
    session = ort.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    error = np.abs(session.run(None, {"x": x})[0] - x @ weight.T).max() / np.abs(x @ weight.T).max()
    assert 1e-4 < error < 0.02


def test_its_name_says_how_it_computes() -> None:
    _, node, _ = call(nbits.MATMUL, random_rows(3, 65), "q5", ("n",))
    assert RuntimeVariant(nbits.variant_of(node)).overload == "q5_zero_ragged_ort4"
    assert function(RuntimeVariant(nbits.variant_of(node), 1)).identifier()[2] == "q5_zero_ragged_ort1"


@pytest.mark.parametrize(
    ("name", "planes"),
    [("q2", [0.25]), ("q3", [0.25, 0.25]), ("q4", [0.5]), ("q5", [0.5, 0.25]), ("q6", [0.5, 0.25]), ("q8", [1])],
)
def test_no_matrix_of_floats_is_left_when_a_session_is_made(name: str, planes: list[float], tmp_path: Path) -> None:
    model, node, _ = call(nbits.MATMUL, random_rows(64, 512), name, ("b", "s"))
    with_body(model, node, function(RuntimeVariant(nbits.variant_of(node))))
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "folded.onnx")
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options, providers=["CPUExecutionProvider"])
    folded = ir.load(tmp_path / "folded.onnx").graph
    sizes = sorted(tensor.nbytes for value in folded.initializers.values() if (tensor := value.const_value))
    assert sorted(sizes[-len(planes) :]) == sorted(64 * 512 * size for size in planes), "bytes of a weight"
    # A scale of each plane and an offset for each block, and planes' zero points of at most a byte.
    assert sum(sizes[: -len(planes)]) < 64 * 8 * (12 + 2) + 200
    assert {n.op_type for n in folded} == {"MatMulNBits", "ReduceSum", "Reshape", "MatMul", "Add", "Shape", "Concat"}
