"""Products and look-ups in packed numbers: the bodies against the formula."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.graph.operators import nbits

from ....passes.graphs import draw, run
from .packed_calls import NAMES, call, random_rows, with_body


@pytest.mark.parametrize(("n", "k", "axes"), [(24, 128, ("b", "s")), (7, 100, ("t",)), (5, 33, ("a", "b", "c"))])
@pytest.mark.parametrize("name", NAMES)
def test_a_product_multiplies_with_what_numbers_stand_for(name: str, n: int, k: int, axes: tuple[str, ...]) -> None:
    model, node, weight = call(nbits.MATMUL, random_rows(n, k), name, axes)
    with_body(model, node, nbits.function(nbits.variant_of(node)))
    onnx.checker.check_model(ir.to_proto(model))
    x = draw(*(2, 3, 4)[: len(axes)], k, seed=1)
    np.testing.assert_allclose(run(model, {"x": x})["y"], x @ weight.T, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(("k", "axes"), [(64, ("b", "s")), (100, ("t",))])
@pytest.mark.parametrize("name", NAMES)
def test_a_look_up_gives_rows_to_the_last_bit(name: str, k: int, axes: tuple[str, ...]) -> None:
    """Numbers, zero points and codes multiply exactly; the row's scale rounds once."""
    model, node, weight = call(nbits.GATHER, random_rows(9, k), name, axes)
    with_body(model, node, nbits.function(nbits.variant_of(node)))
    ids = np.asarray([[0, 8], [3, 3]]) if len(axes) == 2 else np.asarray([8, 1, 0])
    np.testing.assert_array_equal(run(model, {"x": ids})["y"], weight[ids].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "k", "overload"),
    [
        ("q4", 64, "q4_zero"),
        ("q4", 65, "q4_zero_ragged"),
        ("q6-symmetric", 96, "q6"),
        ("q2-symmetric", 40, "q2_ragged"),
    ],
)
def test_a_variant_has_the_name_of_what_it_differs_by(name: str, k: int, overload: str) -> None:
    for operator in (nbits.MATMUL, nbits.GATHER):
        _, node, _ = call(operator, random_rows(3, k), name, ("n",))
        assert nbits.is_call(node)
        assert nbits.function(nbits.variant_of(node)).identifier() == ("llmc", operator.name, overload)
    assert not nbits.is_call(ir.node("MatMulNBits", [], domain="com.microsoft"))
