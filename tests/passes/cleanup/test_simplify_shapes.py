from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llmc.passes.cleanup.fold_constants import FoldConstants
from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.cleanup.simplify_shapes import SimplifyShapes, constant_target
from llmc.passes.graph.graph_query import dims, integers, producer

from ..graphs import Array, apply, close, draw, left_alone, node_of, operators, parse, run

FEEDS = {"x": draw(2, 3, 24), "z": draw(2, 3, 24)}


def make(body: str, more: str = "", **weights: Sequence[int]) -> ir.Model:
    """From x [batch, seq, 24] to y; ``more`` declares the shapes of values that inference does not know."""
    arrays: dict[str, Array] = {name: np.asarray(value, np.int64) for name, value in weights.items()}
    info = f"<{more}>" if more else ""
    return parse(f"m (float[batch, seq, 24] x, float[b, s, 24] z) => (y) {info} {{ {body} }}", arrays)


COMPUTED = """bd = Shape<start=0, end=1>(x)
    sd = Shape<start=1, end=2>(x)
    target = Concat<axis=0>(bd, sd, tail)
    split = Reshape(x, target)
    y = Tanh(split)"""


def test_a_computed_shape_becomes_a_constant() -> None:
    model = make(COMPUTED, more="float[batch, seq, 4, 6] split", tail=[4, 6])
    before = run(model, FEEDS)
    assert apply(SimplifyShapes(), model).fired == {"constant shapes": 1}
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["Reshape", "Tanh"]
    assert integers(node_of(model, "Reshape").inputs[1]) == [0, 0, 4, 6]
    close(run(model, FEEDS), before)


def test_a_dimension_in_another_place_is_computed() -> None:
    """[batch, seq, 24] to [24, batch x seq]: nothing to copy."""
    body = COMPUTED.replace("bd, sd, tail", "tail, minus")
    model = make(body, more="float[24, rows] split", tail=[24], minus=[-1])
    before = run(model, FEEDS)
    apply(SimplifyShapes(), model)
    assert integers(node_of(model, "Reshape").inputs[1]) == [24, -1]
    close(run(model, FEEDS), before)


def test_two_dimensions_in_other_places_stay_computed() -> None:
    model = make(COMPUTED.replace("bd, sd, tail", "tail, sd, bd"), more="float[24, seq2, batch2] split", tail=[24])
    assert left_alone(SimplifyShapes(), model) == []


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("same = Reshape(x, shape)\ny = Tanh(same)", ""),
        ("s = Shape(x)\nwide = Expand(x, s)\ny = Tanh(wide)", "float[batch, seq, 24] wide"),
        ("same = Cast<to=1>(x)\ny = Tanh(same)", ""),
        ("same = Identity(x)\ny = Tanh(same)", ""),
        ("same = Slice(x, zero, far)\ny = Tanh(same)", ""),
        ("same = Slice(x, zero, far, one, one)\ny = Tanh(same)", ""),
        ("same = Slice(x, zero, far32, one)\ny = Tanh(same)", ""),
        ("same = Slice(x, zeros, fars, axes, ones)\ny = Tanh(same)", ""),
        ("a = Identity(x)\nb = Cast<to=1>(a)\nc = Slice(b, zero, far, zero, one)\ny = Tanh(c)", ""),
    ],
    ids=[
        "reshape",
        "expand",
        "cast",
        "identity",
        "slice",
        "slice with steps",
        "slice to a 32-bit end",
        "slice of two axes",
        "one after another",
    ],
)
def test_what_moves_nothing_goes(body: str, more: str) -> None:
    both = {"zeros": [0, 0], "fars": [2**31 - 1, 2**63 - 1], "axes": [0, 1], "ones": [1, 1]}
    model = make(body, more, shape=[0, 0, 24], zero=[0], one=[1], far=[2**63 - 1], far32=[2**31 - 1], **both)
    before = run(model, FEEDS)
    tally = apply(SimplifyShapes(), model)
    assert tally.fired == {"removed": len(operators(make(body))) - 1 - body.count("Shape(x)")}
    RemoveDeadCode()(model)
    assert operators(model) == ["Tanh"]
    close(run(model, FEEDS), before)


@pytest.mark.parametrize(
    ("body", "more"),
    [
        ("turned = Reshape(x, shape)\ny = Tanh(turned)", "float[seq, batch, 24] turned"),
        ("s = Shape(z)\nwide = Expand(x, s)\ny = Tanh(wide)", "float[b, s, 24] wide"),
        ("s = Shape(z)\nwide = Expand(x, s)\ny = Tanh(wide)", "float[batch, unknown, 24] wide"),
        ("half = Cast<to=10>(x)\ny = Tanh(half)", ""),
        ("part = Slice(x, one, far, one)\ny = Tanh(part)", ""),
        ("part = Slice(x, zero, two, one)\ny = Tanh(part)", ""),
        ("back = Slice(x, zero, far, one, two)\ny = Tanh(back)", ""),
        ("part = Slice(x, zeros, far_near, axes)\ny = Tanh(part)", ""),
        ("part = Slice(x, zeros, near_far, axes)\ny = Tanh(part)", ""),
        ("part = Slice(x, zero_one, fars, axes)\ny = Tanh(part)", ""),
        ("part = Slice(x, zeros, fars, axes, one_two)\ny = Tanh(part)", ""),
        ("s = Shape(z)\npart = Slice(x, s, fars3, axes3)\ny = Tanh(part)", ""),
        ("same = llmc.Identity(x)\ny = Tanh(same)", "float[batch, seq, 24] same"),
        ("y = Identity(x)", ""),
    ],
    ids=[
        "other order", "other names", "one other name", "cast", "start", "end", "step", "end of the second axis",
        "end of the first axis", "start of the second axis", "step of the second axis", "computed start",
        "another domain", "output of the graph",
    ],
)  # fmt: skip
def test_what_moves_something_stays(body: str, more: str) -> None:
    far = 2**63 - 1
    both = {"zeros": [0, 0], "fars": [far, far], "far_near": [far, 2], "near_far": [2, far], "axes": [0, 1]}
    both |= {"zero_one": [0, 1], "one_two": [1, 2], "fars3": [far] * 3, "axes3": [0, 1, 2]}
    model = make(body, more, shape=[3, 2, 24], zero=[0], one=[1], two=[2], far=[far], **both)
    if "other" in body or "turned" in body:
        # [3, 2, 24] itself is constant already.
        SimplifyShapes()(model)
    assert left_alone(SimplifyShapes(), model) == []


def test_a_cast_from_a_type_that_is_not_known_stays() -> None:
    model = make("h = Tanh(x)\nf = Cast<to=1>(h)\ny = Tanh(f)")
    next(iter(model.graph)).outputs[0].type = None
    assert left_alone(SimplifyShapes(), model) == []


def test_what_only_a_bypassed_node_knew_of_a_shape_is_kept() -> None:
    model = make("h = Tanh(x)\nsame = Identity(h)\ny = Tanh(same)")
    first = next(iter(model.graph)).outputs[0]
    first.shape = None
    apply(SimplifyShapes(), model)
    assert operators(model) == ["Tanh", "Tanh"]
    assert dims(first) == ["batch", "seq", 24]


def test_a_computed_target_in_which_a_0_is_a_size_becomes_one_in_which_it_copies() -> None:
    body = COMPUTED.replace("Reshape(x", "Reshape<allowzero=1>(x")
    model = make(body, more="float[batch, seq, 4, 6] split", tail=[4, 6])
    before = run(model, FEEDS)
    assert apply(SimplifyShapes(), model).fired == {"constant shapes": 1}
    assert node_of(model, "Reshape").attributes.get_int("allowzero", 0) == 0
    close(run(model, FEEDS), before)


def test_dimensions_without_a_name_are_not_equal() -> None:
    model = make("wide = Expand(x, shape)\ny = Tanh(wide)", shape=[2, 3, 24])
    for value in (model.graph.inputs[0], node_of(model, "Expand").outputs[0]):
        value.shape = ir.Shape([None, None, 24])
    assert left_alone(SimplifyShapes(), model) == []


permutations = st.permutations(range(3))


@settings(max_examples=20, deadline=None)
@given(first=permutations, second=permutations)
@example(first=[1, 2, 0], second=[0, 2, 1])
@example(first=[1, 2, 0], second=[2, 0, 1])
def test_transposes_meet(first: list[int], second: list[int]) -> None:
    body = f"a = Transpose<perm={first}>(x)\nb = Transpose<perm={second}>(a)\ny = Tanh(b)"
    model = make(body)
    before = run(model, FEEDS)
    assert apply(SimplifyShapes(), model).fired == {"merged transposes": 1}
    RemoveDeadCode()(model)
    assert operators(model) in (["Transpose", "Tanh"], ["Tanh"])
    assert (len(operators(model)) == 1) == ([first[i] for i in second] == [0, 1, 2])
    close(run(model, FEEDS), before)


def test_the_first_of_two_transposes_keeps_its_other_readers() -> None:
    swaps = [f"{new} = Transpose<perm=[0,2,1]>({old})" for old, new in ("xa", "ab", "bc")]
    body = "\n".join([*swaps, "y = MatMul(b, c)"])
    model = make(body)
    before = run(model, FEEDS)
    apply(SimplifyShapes(), model)
    RemoveDeadCode()(model)
    assert operators(model) == ["Transpose", "MatMul"]
    close(run(model, FEEDS), before)


def test_transposes_without_a_permutation_stay() -> None:
    model = make("a = Transpose(x)\nb = Transpose(a)\ny = Tanh(b)")
    assert left_alone(SimplifyShapes(), model) == []


def test_transposes_that_cancel_at_an_output_stay() -> None:
    """A graph's output keeps its name, so something must make it."""
    model = make("a = Transpose<perm=[0,2,1]>(x)\ny = Transpose<perm=[0,2,1]>(a)")
    assert left_alone(SimplifyShapes(), model) == []


@pytest.mark.parametrize(
    ("inner", "outer"),
    [([0, 0, 4, 6], [0, 0, 24]), ([0, 0, 4, 6], [0, 0, 3, 8]), ([0, -1], [0, 3, 24]), ([6, 24], [0, 4, 6])],
    ids=["back", "other heads", "through two axes", "0 that copies another dimension"],
)
def test_reshapes_meet(inner: list[int], outer: list[int]) -> None:
    model = make("a = Reshape(x, inner)\nb = Reshape(a, outer)\ny = Tanh(b)", inner=inner, outer=outer)
    before = run(model, FEEDS)
    apply(SimplifyShapes(), model)
    RemoveDeadCode()(model)
    assert operators(model).count("Reshape") <= 1
    close(run(model, FEEDS), before)


def test_reshapes_of_unknown_shapes_do_not_meet() -> None:
    """The 0 of the outer one copies a dimension that the inner one made."""
    model = make("a = Reshape(x, inner)\nb = Reshape(a, outer)\ny = Tanh(b)", inner=[6, 24], outer=[0, 4, 6])
    for node in model.graph:
        node.outputs[0].shape = None
    before = run(model, FEEDS)
    assert left_alone(SimplifyShapes(), model) == []
    close(run(model, FEEDS), before)


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_a_target_gives_the_shape(data: st.DataObject) -> None:
    sizes = {"a": 2, "b": 3, "c": 5}
    before = data.draw(st.lists(st.sampled_from(["a", "b", "c", 4, None]), min_size=1, max_size=4))
    after = data.draw(st.permutations(before))
    target = constant_target(before, after)
    if target is None:
        return
    x = np.zeros([sizes.get(d, 7) if not isinstance(d, int) else d for d in before])
    copied = [x.shape[i] if d == 0 else d for i, d in enumerate(target)]
    wanted = [sizes.get(d, 7) if not isinstance(d, int) else d for d in after]
    assert copied.count(-1) <= 1
    assert list(x.reshape(copied).shape) == wanted
    assert prod(wanted) == x.size


@pytest.mark.parametrize(
    ("before", "after", "target"),
    [
        (["batch", "seq", 24], ["batch", "seq", 4, 6], [0, 0, 4, 6]),
        (["batch", "seq", 24], ["batch", "rows", 6], [0, -1, 6]),
        (["batch", "seq"], ["seq", "batch"], None),
        (["batch", None], ["batch", None], [0, -1]),
        (["batch"], ["batch", 0], None),
    ],
)
def test_targets(before: list[int | str | None], after: list[int | str | None], target: list[int] | None) -> None:
    assert constant_target(before, after) == target


def test_a_traced_decoder(traced: Callable[[], ir.Model], traced_feeds: dict[str, Array]) -> None:
    model = traced()
    RemoveDeadCode()(model)
    FoldConstants()(model)
    before = run(model, traced_feeds)
    tally = apply(SimplifyShapes(), model)
    assert tally.fired["constant shapes"] >= 8
    apply(RemoveDeadCode(), model)
    assert "Identity" not in operators(model)
    head = model.graph.outputs[0].producer()
    assert head is not None
    assert producer(head.inputs[0], "RMSNormalization") is not None, "the model's h[:, 0:] is gone"
    assert all(integers(node.inputs[1]) is not None for node in model.graph if node.op_type == "Reshape")
    close(run(model, traced_feeds), before)
