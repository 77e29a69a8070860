"""Which weights are kept on their grid, and that a graph which keeps them says what its floats said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.base.options import OptimizeOptions, Zero
from llmc.compiler.checkpoint.weights import ArrayWeights, TensorInfo
from llmc.compiler.graph.lazy_weight import LazyWeight, RowScaledWeight, SourceWeight, StackedWeight, TensorWeight
from llmc.compiler.quantization.plan import kept_zeros
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.quantization.kept_grids import kept_scheme, require_kept, require_stored
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.quantization.sites import Site, find_sites

from ...compiler.quantization.expanded import Array, expand
from ...compiler.quantization.test_gguf_grids import CASES
from ...compiler.quantization.test_gguf_grids import rows_of as gguf_rows
from ..graphs import apply, draw, parse, run

ALL: tuple[Zero, ...] = ("none", "integer", "offset")
TEXT = "m (float[n, 64] x) => (float[n, 96] y) { y = MatMul(x, w) }"


def linear(rows: Array) -> ir.Model:
    """A product with [out, in] rows."""
    text = TEXT.replace("64", str(rows.shape[1])).replace("96", str(rows.shape[0]))
    return parse(text, {"w": np.ascontiguousarray(rows.T)}, lazy=True)


def planned(name: str) -> Scheme:
    scheme = scheme_of(name)
    assert scheme is not None
    return scheme


def kept(rows: Array, plan: str, zeros: tuple[Zero, ...] = ALL) -> Scheme | None:
    [site] = find_sites(linear(rows), head=False)
    return kept_scheme(site, planned(plan), zeros)


def rows_of(kind: str, bits: int = 4, block: int = 32) -> Array:
    return expand(kind, bits, block, shape=(96, 64)).rows


@pytest.mark.parametrize(
    ("kind", "bits", "plan", "expected"),
    [
        ("offsets", 4, "int4-offset@32", "int4-offset@32"),
        ("offsets", 4, "q4@64", "int4-offset@32"),
        ("points", 4, "q4", "int4-zero@32"),
        ("signed", 4, "q4", "int4@32"),
        ("signed", 4, "q5", "int4@32"),
        ("signed", 3, "int4@64", "int4@32"),
        ("offsets", 4, "int8@64", "int4-offset@32"),
        ("signed", 5, "q5", None),
        ("signed", 5, "q6", None),
        ("signed", 5, "q8", "int8@32"),
        ("signed", 8, "int8@16", "int8@32"),
        ("signed", 8, "int4@32", None),
        ("signed", 4, "q3", None),
        ("signed", 4, "fp8@128", None),
        ("signed", 4, "qdq-int4@32", None),
    ],
)
def test_the_scheme_holds_the_grid_in_no_more_bits(kind: str, bits: int, plan: str, expected: str | None) -> None:
    assert kept(rows_of(kind, bits), plan) == (expected and planned(expected))


def test_blocks_may_have_what_the_target_reads() -> None:
    """The least of what is enough: a whole zero point for signed levels where nothing else is known, no offsets."""
    assert kept(rows_of("offsets"), "int4@32", ("none", "integer")) is None
    assert kept(rows_of("points"), "int4@32", ("none",)) is None
    assert kept(rows_of("points"), "int4@32", ("none", "offset")) == planned("int4-offset@32")
    assert kept(rows_of("signed"), "int4@32", ("integer",)) == planned("int4-zero@32")
    assert kept(rows_of("signed"), "int4@32", ()) is None


def test_weights_on_no_grid_are_not_kept() -> None:
    assert kept(draw(96, 64), "int8@32") is None


def test_only_products_of_linear_layers_have_offsets() -> None:
    """Look-ups know none, and the head may share a table's bytes; as experts do not."""
    for kind, zero in (("offsets", None), ("points", "int4-zero@32")):
        [site] = find_sites(linear(rows_of(kind)), head=False)
        for other in ("head", "embedding", "experts"):
            moved = Site(other, site.node, site.weights)  # type: ignore[arg-type]
            assert kept_scheme(moved, planned("int4@32"), ALL) == (zero and planned(zero))


def test_two_stacks_of_experts_share_a_scheme() -> None:
    [one] = find_sites(linear(rows_of("signed", block=64)), head=False)
    [other] = find_sites(linear(rows_of("points")), head=False)
    both = Site("experts", one.node, (*one.weights, *other.weights))
    assert kept_scheme(both, planned("int8-zero@64"), ALL) == planned("int4-zero@32")
    [off] = find_sites(linear(draw(96, 64)), head=False)
    assert kept_scheme(Site("experts", one.node, (*one.weights, *off.weights)), planned("int4@32"), ALL) is None
    assert kept_scheme(Site("experts", one.node, ()), planned("int4@32"), ALL) is None


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize(
    ("kind", "by_mean"), [("signed", False), ("points", False), ("offsets", False), ("offsets", True)]
)
def test_a_product_says_what_its_floats_said(kind: str, by_mean: bool, full: bool) -> None:
    """ONNX Runtime computes it in float32; what packed weights lose is a thousand times as much.

    Rounding by a block's ends meets its levels only where the block uses the whole of its range.
    """
    rows, x = expand(kind, 4, shape=(96, 64), full=full).rows, draw(5, 64, seed=3)
    outputs = {}
    for zeros in (ALL, ()):
        model = linear(rows)
        weights = QuantizeWeights({"linear": "q4"}, accuracy_level=0, kept_zeros=zeros, offsets_by_mean=by_mean)
        tally = apply(weights, model)
        assert tally.fired == ({"linear": 1, "kept exactly": 1} if zeros else {"linear": 1})
        assert tally.expected == {"linear": 1}
        outputs[zeros] = run(model, {"x": x})["y"]
    scale = np.abs(x @ rows.T).max()
    assert np.abs(outputs[ALL] - x @ rows.T).max() < 1e-5 * scale
    assert np.abs(outputs[()] - x @ rows.T).max() > 1e-3 * scale


@pytest.mark.parametrize(("bits", "kind"), [(8, "signed"), (8, "offsets"), (4, "offsets")])
def test_floats_of_16_bits_do_not_hide_a_grid(bits: int, kind: str) -> None:
    """Weights are looked at before they are rounded; scales and offsets alone have the activations' type."""
    rows, x = rows_of(kind, bits), draw(5, 64, seed=3).astype(np.float16)
    model = linear(rows)
    apply(ConvertFloat("fp16"), model)
    tally = apply(QuantizeWeights({"linear": "int8@64"}, 0, ALL, offsets_by_mean=True), model)
    assert tally.fired == {"linear": 1, "kept exactly": 1}
    found = run(model, {"x": x})["y"]
    expected = x.astype(np.float32) @ rows.T
    assert found.dtype == np.float16
    assert np.abs(found - expected).max() < 2e-3 * np.abs(expected).max()


def test_sums_that_16_bits_do_not_hold_are_means() -> None:
    """A block's inputs add up to 96,000, and what the layer makes of them is far less."""
    rows = rows_of("offsets")
    model = linear(rows)
    apply(ConvertFloat("fp16"), model)
    apply(QuantizeWeights({"linear": "int4@32"}, 0, ALL, offsets_by_mean=True), model)
    found = run(model, {"x": np.full((2, 64), 3000, np.float16)})["y"]
    expected = 3000 * rows.sum(axis=1)
    assert np.abs(found - expected).max() < 4e-3 * 3000 * np.abs(rows).sum(axis=1).max()


def test_what_is_kept_is_said() -> None:
    """By grid, of how many weights; what is not kept is stored as planned."""
    text = """m (float[n, 64] x) => (float[n, 96] y) {
        a = MatMul(x, a_w) b = MatMul(a, b_w) c = MatMul(b, c_w) y = MatMul(c, d_w) }"""
    square = {name: expand(kind, bits, shape=(64, 64)).rows for name, kind, bits in (
        ("a_w", "offsets", 4), ("b_w", "points", 4), ("c_w", "signed", 8)
    )}  # fmt: skip
    model = parse(text, {**{name: rows.T.copy() for name, rows in square.items()}, "d_w": draw(64, 96)}, lazy=True)
    tally = apply(QuantizeWeights({"linear": "int8@64"}, kept_zeros=ALL), model)
    assert tally.fired == {"linear": 4, "kept exactly": 3}
    assert tally.stored == {"int4": 2, "int8": 2}
    assert tally.notes == [
        "weights lie on a 4-bit grid in blocks of 32 (2 of 4): kept exactly",
        "weights lie on an 8-bit grid in blocks of 32 (1 of 4): kept exactly",
    ]
    sizes = {node.outputs[0].name: node.attributes.get_int("block_size") for node in model.graph if node.domain}
    assert sorted(sizes.values()) == [32, 32, 32, 64]


def test_without_weights_on_a_grid_nothing_is_said() -> None:
    tally = apply(QuantizeWeights({"linear": "q4"}, kept_zeros=ALL), linear(draw(96, 64)))
    assert (tally.fired, tally.notes) == ({"linear": 1}, [])


class Stored(ArrayWeights):
    """Tensors of which a checkpoint holds those called ``q`` in small numbers."""

    def tensors(self) -> dict[str, TensorInfo]:
        infos = super().tensors()
        return {name: replace(info, stored_type="some int4" if "q" in name else "") for name, info in infos.items()}


def stored_weight(name: str, rows: Array | None = None) -> LazyWeight:
    rows = draw(96, 64) if rows is None else rows
    return SourceWeight(Stored({name: rows}), name, rows.shape, ir.DataType.FLOAT)


def a_site(name: str, weight: LazyWeight) -> Site:
    return Site("linear", find_sites(linear(draw(96, 64)), head=False)[0].node, ((name, weight),))


@pytest.mark.parametrize(
    "made_of",
    [
        lambda weight: weight,
        lambda weight: StackedWeight([stored_weight("k"), weight], transposed=False),
        lambda weight: TensorWeight(weight, weight.dtype, transposed=False),
        lambda weight: RowScaledWeight(weight, np.ones(96, np.float32)),
    ],
)
def test_stored_numbers_that_are_not_kept_are_named_by_kind(made_of: Callable[[LazyWeight], LazyWeight]) -> None:
    sites = [a_site(f"layers.{layer}.up.{layer}", made_of(stored_weight("q"))) for layer in (3, 12)]
    with pytest.raises(UnsupportedModelError, match=r"the numbers of layers\.\*\.up\.3 \(some int4\); .*up\.12"):
        require_stored(sites)


def test_floats_of_a_checkpoint_may_be_converted() -> None:
    plain = TensorWeight(ir.tensor(draw(96, 64)), ir.DataType.FLOAT, transposed=False)
    require_stored([a_site("layers.3.k_proj", stored_weight("k")), a_site("layers.3.v_proj", plain)])


KEPT_BY = {  # In the order of the columns of docs/gguf.md: CPU int4, CPU int8, CUDA int4, CUDA int8.
    **dict.fromkeys(("Q4_0", "Q3_K", "Q4_1", "Q4_K", "Q2_K"), "yes yes yes yes"),
    **dict.fromkeys(("Q5_0", "Q8_0", "Q6_K", "IQ4_NL", "IQ4_XS", "Q5_1", "Q5_K", "MXFP4"), "no yes no yes"),
}


@pytest.mark.parametrize("name", sorted(CASES.keys() - {"F32"}))
@pytest.mark.parametrize("column", range(4))
def test_a_type_of_gguf_is_kept_or_named(name: str, column: int) -> None:
    plan, target = (("q4", "cpu"), ("q8", "cpu"), ("int4@32", "cuda"), ("int8@64", "cuda"))[column]
    zeros = kept_zeros(OptimizeOptions(target=target, precision="int4"))
    weight = stored_weight("q", np.ascontiguousarray(gguf_rows(name)))
    sites = [a_site("layers.0.q_proj", weight), a_site("layers.0.plain", draw_weight())]
    if KEPT_BY[name].split()[column] == "yes":
        require_kept(sites, {"linear": plan}, zeros)
    else:
        with pytest.raises(
            UnsupportedModelError, match=r"the numbers of layers\.\*\.q_proj \(some int4\) in as many"
        ):
            require_kept(sites, {"linear": plan}, zeros)


def draw_weight() -> LazyWeight:
    """A weight that its checkpoint has in floats, and that is nobody's to keep."""
    return SourceWeight(Stored({"plain": draw(96, 64)}), "plain", (96, 64), ir.DataType.FLOAT)


def test_what_a_plan_leaves_in_floats_is_not_kept() -> None:
    sites = [a_site("q", stored_weight("q", np.ascontiguousarray(gguf_rows("Q4_0"))))]
    with pytest.raises(UnsupportedModelError, match="do not hold the numbers of q"):
        require_kept(sites, {"linear": "float"}, ALL)


@pytest.mark.parametrize(
    ("name", "keep", "refused"), [("Q4_0", True, False), ("F32", True, True), ("F32", False, False)]
)
def test_the_pass_refuses_what_it_converts(name: str, keep: bool, refused: bool) -> None:
    """Whatever was asked before: it is the pass that knows what it stored."""
    rows = np.ascontiguousarray(gguf_rows(name)) if name != "F32" else draw(96, 64)
    weight = SourceWeight(Stored({"q": rows}), "q", rows.shape, ir.DataType.FLOAT, transposed=True)
    model = linear(rows)
    model.graph.initializers["w"].const_value = weight
    change = QuantizeWeights({"linear": "q4"}, kept_zeros=ALL, keep_stored=keep)
    if refused:
        with pytest.raises(UnsupportedModelError, match=r"the numbers of w \(some int4\)"):
            apply(change, model)
    else:
        assert apply(change, model).fired == {"linear": 1, **({"kept exactly": 1} if keep else {})}


def test_a_weight_of_two_sites_is_read_once(monkeypatch: pytest.MonkeyPatch) -> None:
    weight, reads = stored_weight("q", np.ascontiguousarray(gguf_rows("Q4_0"))), list[int]()
    read = type(weight).rows
    monkeypatch.setattr(
        SourceWeight, "rows", lambda self, start, stop: reads.append(start) or read(self, start, stop)
    )
    require_kept([a_site("q", weight)], {"linear": "q4"}, ALL)
    once = len(reads)
    require_kept([a_site("q", weight), a_site("again", weight)], {"linear": "q4"}, ALL)
    assert len(reads) == 2 * once
