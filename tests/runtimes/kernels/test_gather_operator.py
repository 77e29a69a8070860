"""llmc.cpu::GatherNBits: rows of a table, as its codes say them."""

from __future__ import annotations

import numpy as np
import pytest

from .operators import coded_weight, gather, product

pytestmark = pytest.mark.usefixtures("variant")
BITS = (2, 3, 4, 5, 6, 8)


def rows(weight, ids, **options):
    ids = np.asarray(ids, np.int64)
    return gather(weight, rank=ids.ndim, **options)({"ids": ids}, {"y": (*ids.shape, weight.k)})["y"]


def exact(weight):
    """The table in float32: code and level less zero point are multiplied exactly, the row's scale once rounded."""
    exact = weight.values() / weight.row_scales.astype(np.float64)[:, None]
    return exact.round(8).astype(np.float32) * weight.row_scales[:, None]


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("zeros", [True, False])
@pytest.mark.parametrize(("block_size", "k"), [(32, 100), (64, 64), (64, 31), (128, 300)])
@pytest.mark.parametrize("bits", BITS)
def test_rows_to_the_last_bit(bits, block_size, k, zeros, threads):
    generator = np.random.default_rng([bits, block_size, k])
    weight = coded_weight(generator, 37, k, bits, block_size, zeros=zeros)
    for shape in [(1,), (15,), (16,), (40,), (2, 3), (1, 2, 3, 4, 5, 1, 1), (0,), (3, 0)]:
        ids = generator.integers(0, 37, size=shape)
        np.testing.assert_array_equal(rows(weight, ids, threads=threads), exact(weight)[ids])


def test_negative_ids_count_from_the_end():
    weight = coded_weight(np.random.default_rng(1), 5, 40, 4, 32)
    np.testing.assert_array_equal(rows(weight, [-1, -5, 0, 4]), exact(weight)[[4, 0, 0, 4]])


@pytest.mark.parametrize("bad", [5, -6, 2**40, -(2**63)])
@pytest.mark.parametrize("place", [0, 19])
def test_ids_beyond_the_table_are_refused(bad, place):
    weight = coded_weight(np.random.default_rng(1), 5, 40, 4, 32)
    ids = np.zeros(20, np.int64)
    ids[place] = bad
    with pytest.raises(Exception, match="an id is no row of the table"):
        rows(weight, ids)


def test_eight_axes_of_ids_are_refused():
    weight = coded_weight(np.random.default_rng(1), 5, 40, 4, 32)
    with pytest.raises(Exception, match="ids must have 1 to 7 axes"):
        rows(weight, np.zeros((1,) * 8, np.int64))


def test_a_table_that_is_fed_is_read():
    weight = coded_weight(np.random.default_rng(2), 9, 70, 6, 32)
    parts = weight.constants()
    node = gather(weight, constants={name: parts[name] for name in ("zeros", "high")})
    feeds = {"ids": np.asarray([3, 8], np.int64), **{name: parts[name] for name in ("w", "scales", "row_scales")}}
    np.testing.assert_array_equal(node(feeds, {"y": (2, 70)})["y"], exact(weight)[[3, 8]])
    with pytest.raises(Exception, match="there is not one row scale a row"):
        node({**feeds, "row_scales": np.ones(8, np.float32)}, {"y": (2, 70)})


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"bits": 7}, "unsupported bits, block size or shape"),
        ({"block_size": 48}, "unsupported bits, block size or shape"),
        ({"N": 0}, "unsupported bits, block size or shape"),
        ({"N": 6}, "the weight does not have K x N levels"),
        ({"K": 100}, "the weight does not have K x N levels"),
    ],
)
def test_attributes_that_do_not_fit_are_refused(options, reason):
    weight = coded_weight(np.random.default_rng(3), 5, 40, 4, 32)
    with pytest.raises(Exception, match=reason):
        rows(weight, [1], **options)


@pytest.mark.parametrize("bits", BITS)
def test_a_row_of_the_table_is_that_of_the_product(bits):
    """A tied table and head read the same weight."""
    weight = coded_weight(np.random.default_rng(4), 20, 64, bits, 32)
    columns = product(weight)({"a": np.eye(64, dtype=np.float32)}, {"y": (64, 20)})["y"].T
    np.testing.assert_allclose(rows(weight, np.arange(20)), columns, rtol=1e-6)
