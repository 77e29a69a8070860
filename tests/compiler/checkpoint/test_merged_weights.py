"""Updates that are made while rows are read."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.checkpoint.merged_weights import Addition, Edit, LowRank, MergedWeights, Replacement
from llmc.compiler.checkpoint.weights import ArrayWeights

RNG = np.random.default_rng(0)
OUT, IN, RANK = 6, 4, 2
A, B = (RNG.standard_normal(shape, dtype=np.float32) for shape in ((RANK, IN), (OUT, RANK)))
WEIGHT = RNG.standard_normal((OUT, IN), dtype=np.float32)
MAGNITUDE = RNG.uniform(1, 2, OUT).astype(np.float32)


def merged(weight: np.ndarray[Any, Any], *edits: Edit) -> MergedWeights:
    return MergedWeights(ArrayWeights({"x": weight, "y": np.ones(3, np.float16)}), {"x": edits})


def test_an_update_is_added() -> None:
    weights = merged(WEIGHT, LowRank(A, B, 0.5))
    np.testing.assert_allclose(weights.read("x"), WEIGHT + 0.5 * (B @ A), rtol=1e-6, atol=1e-6)
    assert weights.read("x").dtype == np.float32


def test_a_weight_that_is_stored_transposed() -> None:
    weights = merged(WEIGHT.T.copy(), LowRank(A, B, 0.5, transposed=True))
    np.testing.assert_allclose(weights.read("x"), (WEIGHT + 0.5 * (B @ A)).T, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_magnitudes_are_the_norms_of_the_outputs(transposed: bool) -> None:
    """And what was merged before has no part in the norms: those are of the original and the update."""
    stored = WEIGHT.T.copy() if transposed else WEIGHT
    one = LowRank(A, B, 0.5, transposed=transposed, magnitude=MAGNITUDE)
    read = merged(stored, one).read("x")
    np.testing.assert_allclose(np.linalg.norm(read, axis=0 if transposed else 1), MAGNITUDE, rtol=1e-6)
    first = LowRank(A, B, 3.0, transposed=transposed)
    both = merged(stored, first, LowRank(A, B, 0.5, transposed=transposed, magnitude=MAGNITUDE)).read("x")
    total = WEIGHT + 0.5 * (B @ A)
    expected = (MAGNITUDE / np.linalg.norm(total, axis=1))[:, None] * (total + 3.0 * (B @ A))
    np.testing.assert_allclose(both, expected.T if transposed else expected, rtol=1e-5, atol=1e-6)


def test_norms_of_columns_are_looked_for_by_blocks_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.compiler.checkpoint import merged_weights

    stored = WEIGHT.T.copy()
    whole = merged(stored, LowRank(A, B, 0.5, transposed=True, magnitude=MAGNITUDE)).read("x")
    monkeypatch.setattr(merged_weights, "_CHUNK_VALUES", 1)
    by_rows = merged(stored, LowRank(A, B, 0.5, transposed=True, magnitude=MAGNITUDE)).read("x")
    np.testing.assert_allclose(by_rows, whole, rtol=1e-6)


@pytest.mark.parametrize("transposed", [False, True])
def test_rows_are_slices(transposed: bool) -> None:
    stored = WEIGHT.T.copy() if transposed else WEIGHT
    weights = merged(stored, LowRank(A, B, 0.5, transposed=transposed, magnitude=MAGNITUDE))
    whole = weights.read("x")
    for start, stop in ((0, 1), (1, 3), (2, None), (-1, None), (3, 3)):
        np.testing.assert_array_equal(weights.read("x", start, stop), whole[start:stop])


def test_a_tensor_in_the_place_of_another_and_an_update_of_it() -> None:
    other = ArrayWeights({"z": RNG.standard_normal((OUT, IN)).astype(ml_dtypes.bfloat16)})
    replaced = other.read("z").astype(np.float32)
    np.testing.assert_array_equal(merged(WEIGHT, Replacement(other, "z")).read("x"), replaced)
    for transposed in (False, True):
        a, b = (B.T, A.T) if transposed else (A, B)
        magnitude = MAGNITUDE[: IN if transposed else OUT]
        update = LowRank(a, b, 0.5, transposed=transposed, magnitude=magnitude)
        read = merged(WEIGHT, Replacement(other, "z"), update).read("x")
        np.testing.assert_allclose(np.linalg.norm(read, axis=0 if transposed else 1), magnitude, rtol=1e-6)


def test_a_tensor_that_the_base_has_not() -> None:
    other = ArrayWeights({"z": WEIGHT})
    weights = MergedWeights(ArrayWeights({"y": np.ones(3)}), {"x": [Replacement(other, "z")]})
    np.testing.assert_array_equal(weights.read("x", 1, 4), WEIGHT[1:4])
    assert list(weights.tensors()) == ["x", "y"]
    assert not weights.over_base


def test_a_vector_is_added() -> None:
    bias = np.arange(5, dtype=np.float32)
    np.testing.assert_array_equal(merged(bias, Addition(bias, 2.0)).read("x", 1, 3), 3 * bias[1:3])


def test_other_tensors_are_as_they_were() -> None:
    weights = merged(WEIGHT.astype(np.float16), LowRank(A, B, 0.5))
    assert weights.read("y").dtype == np.float16
    assert weights.tensors()["y"].dtype == ir.DataType.FLOAT16
    assert (weights.tensors()["x"].dtype, weights.tensors()["x"].shape) == (ir.DataType.FLOAT, (OUT, IN))
    assert weights.over_base
    assert not MergedWeights(weights.base, weights.edits, deep=True).over_base
