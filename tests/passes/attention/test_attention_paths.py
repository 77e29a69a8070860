from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.attention.attention_paths import HeadPath, rms_norm, to_merged, walk_to_core
from llmc.passes.fusion.fuse_rotary import FuseRotary
from llmc.passes.graph.graph_query import dims
from llmc.passes.graph_pass import NearMiss

from ..attention_graphs import ROTATE, make, text
from ..graphs import left_alone, parse


def value_of(model: ir.Model, name: str) -> ir.Value:
    made = (output for node in model.graph for output in node.outputs)
    return next(value for value in [*model.graph.inputs, *made] if value.name == name)


def walk(body: str, heads: int = 4) -> HeadPath:
    weights = {"split": [0, 0, 4, 8], "merge": [0, 0, 32], "odd": [0, 0, 2, 16], "turned": [0, 4, -1, 8]}
    arrays = {name: np.asarray(shape, np.int64) for name, shape in weights.items()}
    model = parse(f"m (float[b, s, 32] x, float[b, 4, s, 8] h, float[b, s, 4, 8] f) => (y) {{ {body} }}", arrays)
    for node in model.graph:
        if node.domain:
            node.outputs[0].shape = ir.Shape(["b", "s", 4, 8])
    return walk_to_core(value_of(model, "y"), heads)


SWAP = "Transpose<perm=[0,2,1,3]>"


@pytest.mark.parametrize(
    ("body", "stop", "heads_first", "merged"),
    [
        ("y = Tanh(x)", "y", False, True),
        ("y = Reshape(f, merge)", "f", False, False),
        ("y = com.microsoft.Reshape(f, merge)", "y", False, True),
        ("a = com.microsoft.Transpose(h)\ny = Reshape(a, merge)", "a", False, False),
        (f"a = {SWAP}(h)\ny = Reshape(a, merge)", "h", True, False),
        (f"a = Reshape(x, split)\nb = {SWAP}(a)\nc = {SWAP}(b)\ny = Reshape(c, merge)", "x", False, True),
        (f"a = {SWAP}(h)\nb = {SWAP}(a)\nc = {SWAP}(b)\ny = Reshape(c, merge)", "h", True, False),
    ],
)
def test_a_walk_stops_at_the_first_node_that_computes(body: str, stop: str, heads_first: bool, merged: bool) -> None:
    path = walk(body)
    assert (path.value.name, path.heads_first, path.merged) == (stop, heads_first, merged)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("a = Reshape(x, odd)\ny = Reshape(a, merge)", "does not split or merge 4 heads"),
        (f"a = Reshape(x, turned)\nb = {SWAP}(a)\ny = Reshape(b, merge)", "reshapes before the heads are split"),
        (
            "a = Transpose<perm=[0,1,2,3]>(f)\ny = Reshape(a, merge)",
            "transposes something else than sequence and heads",
        ),
        ("y = Transpose<perm=[1,0,2]>(x)", "transposes something else than sequence and heads"),
    ],
    ids=["other heads", "split first", "identity", "batch"],
)
def test_other_layout_changes_are_near_misses(body: str, reason: str) -> None:
    with pytest.raises(NearMiss, match=reason):
        walk(body)


@pytest.mark.parametrize(
    ("shape", "reason"),
    [
        (None, "core has no known 4-D shape"),
        (["b", "s", 32], "core has no known 4-D shape"),
        (["b", "heads", "s", 8], "core has a symbolic number or size of heads"),
        (["b", 4, "s", "dim"], "core has a symbolic number or size of heads"),
    ],
)
def test_unknown_shapes_are_near_misses(shape: list[int | str] | None, reason: str) -> None:
    core = ir.val("core", ir.DataType.FLOAT, shape)
    graph = ir.Graph([core], [], nodes=[], name="g")
    with pytest.raises(NearMiss, match=reason):
        to_merged(core, True, graph)


@pytest.mark.parametrize(("heads_first", "shape"), [(True, ["b", 4, "s", 8]), (False, ["b", "s", 4, 8])])
def test_a_core_is_merged(heads_first: bool, shape: list[int | str]) -> None:
    core = ir.val("core", ir.DataType.FLOAT, shape)
    graph = ir.Graph([core], [], nodes=[], name="g")
    value, nodes = to_merged(core, heads_first, graph)
    assert [node.op_type for node in nodes] == (["Transpose", "Reshape"] if heads_first else ["Reshape"])
    assert dims(value) == ["b", "s", 32]
    assert value.dtype == ir.DataType.FLOAT


def test_a_key_whose_shape_is_unknown_leaves_the_query_alone_too() -> None:
    model = make(text(ROTATE, ROTATE))
    value_of(model, "k_t").shape = ir.Shape(["batch", 2, "seq", "dim"])
    before = [node.op_type for node in model.graph]
    result = FuseRotary(16)(model)
    assert not result.modified
    assert [node.op_type for node in model.graph] == before
    assert left_alone(FuseRotary(16), model) == ["k_t has a symbolic number or size of heads"]


@pytest.mark.parametrize(
    ("axis", "is_norm"),
    [("<axis=-1>", True), ("<axis=3>", True), ("", True), ("<axis=2>", False), ("<axis=1>", False)],
)
def test_norms_of_the_last_axis(axis: str, is_norm: bool) -> None:
    model = parse(f"m (float[b, s, 4, 8] f, float[8] w) => (y) {{ y = RMSNormalization{axis}(f, w) }}")
    assert (rms_norm(model.graph.outputs[0]) is not None) == is_norm
    assert rms_norm(model.graph.inputs[0]) is None
