"""How long a value lives, and how large one is whose shape or type no graph states."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.runtimes.memory.activations import LiveSet, largest_live_set

SIZES = {"batch": 2, "sequence": 3}


def parsed(
    nodes: str, values: str = "", inputs: str = "float[sequence, 8] x", output: str = "[sequence, 1] y"
) -> ir.Graph:
    text = f"""<ir_version: 10, opset_import: ["" : 23, "test" : 1]>
    g ({inputs}) => (float{output}) {f"<{values}>" if values else ""} {{ {nodes} }}"""
    return ir.from_onnx_text(text).graph


def live(*arguments: str, **options: str) -> LiveSet:
    return largest_live_set(parsed(*arguments, **options), SIZES)


def words(found: LiveSet) -> float:
    """Numbers of 4 bytes for each of the three tokens."""
    return found.bytes / 4 / 3


def test_what_nobody_reads_is_gone_after_its_node() -> None:
    nodes = "a, idle = Op(x)  b = Op(a)  y = Op(b)"
    found = live(nodes, "float[sequence, 2] a, float[sequence, 50] idle, float[sequence, 40] b")
    assert words(found) == 8 + 2 + 50
    assert found.node == "Op"
    found = live(nodes, "float[sequence, 2] a, float[sequence, 50] idle, float[sequence, 70] b")
    assert words(found) == 8 + 2 + 70


def test_an_output_of_the_graph_stays_to_the_end() -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[sequence, 8] x) => (float[sequence, 4] early, float[sequence, 1] y)
    <float[sequence, 16] a, float[sequence, 32] b> { early = Op(x)  a = Op(x)  b = Op(a)  y = Op(b) }"""
    assert words(largest_live_set(ir.from_onnx_text(text).graph, SIZES)) == 8 + 4 + 16 + 32


@pytest.mark.parametrize(
    "views",
    ["v = Reshape(a, s)", "u = Squeeze(a)  v = Unsqueeze(u)", "t = Identity(a) u = Flatten(t) v = Reshape(u, s)"],
)
def test_what_a_view_shows_lives_as_long_as_the_view(views: str) -> None:
    """And the view itself takes nothing, through however many views."""
    values = ", ".join(f"float[sequence, 16] {name}" for name in "atuv") + ", float[sequence, 32] b"
    found = live(f"a = Op(x)  {views}  b = Op(x)  y = Op(v, b)", values)
    assert words(found) == 8 + 16 + 32 + 1


def test_another_domains_reshape_is_a_copy() -> None:
    values = "float[sequence, 16] a, float[sequence, 16] v"
    assert words(live("a = Op(x)  v = test.Reshape(a, x)  y = Op(v)", values)) == 8 + 16 + 16


def test_a_view_of_a_weight_is_a_copy_of_it() -> None:
    graph = parsed("v = Reshape(w, x)  y = Op(v, x)", "float[4] v", "float[sequence, 8] x, float[4] w")
    weight = graph.inputs[1]
    weight.const_value = ir.tensor([1.0, 2.0, 3.0, 4.0], name="w")
    graph.register_initializer(weight)
    assert largest_live_set(graph, SIZES).bytes == 4 * (3 * 8 + 4 + 3), "and the weight is counted elsewhere"


def test_the_first_of_several_peaks_is_named() -> None:
    graph = parsed(
        "a = Op(x)  b = Op(a)  c = Op(b)  y = Op(c)", ", ".join(f"float[sequence, 9] {name}" for name in "abc")
    )
    for node, name in zip(graph, ("first", "second", "third", "last"), strict=True):
        node.name = name
    assert largest_live_set(graph, SIZES).node == "second"


def branch(width: int) -> str:
    return f"() => (float[sequence, 1] q{width}) {{ p{width} = Op() q{width} = Op(p{width}) }}"


def test_one_branch_is_taken() -> None:
    graph = parsed(
        f"y = If (c) <then_branch = t {branch(20)}, else_branch = e {branch(30)}>",
        inputs="bool c, float[sequence, 8] x",
    )
    for name, width in (("then_branch", 20), ("else_branch", 30)):
        inner = graph[0].attributes[name].as_graph()[0].outputs[0]
        inner.shape, inner.dtype = ir.Shape(["sequence", width]), ir.DataType.FLOAT
    assert largest_live_set(graph, SIZES).bytes == 1 + 4 * 3 * (8 + 1 + 30 + 1)


def test_bodies_in_a_list_are_looked_into() -> None:
    graph = parsed("y = Op(x)")
    inner = ir.Value(name="inner", shape=ir.Shape([100]), type=ir.TensorType(ir.DataType.FLOAT))
    body = ir.Graph([], [], nodes=[ir.node("Op", [], outputs=[inner])], opset_imports={"": 23})
    graph[0].attributes["bodies"] = ir.AttrGraphs("bodies", [body])
    assert largest_live_set(graph, SIZES).bytes == 4 * (3 * 8 + 3 + 100)


def test_packed_values_are_rounded_up_once() -> None:
    assert live("a = Op(x)  y = Op(a)", "int4[5] a").bytes == 4 * 3 * 8 + 3 + 4 * 3


@pytest.mark.parametrize(
    ("nodes", "values", "size"),
    [
        ("a = Add(s, x)", "float[sequence, 1] s", 8),
        ("a = Add(x, x)", "", 8),
        ("a = Where(s, x, s)", "float[sequence, 1] s", 8),
        ("a = ReduceSum(x)", "", 8),
        ("a = Concat <axis = 1> (x, s, x)", "float[sequence, 1] s", 17),
        ("a, b, c = Split(x)", "", 3 * 8 / 3),
    ],
)
def test_sizes_that_follow_from_the_inputs(nodes: str, values: str, size: float) -> None:
    """At most: a sum over an axis may be as large as what it sums."""
    made = f"s = Op(x)  {nodes}  y = Op(s, a)" if values else f"{nodes}  y = Op(a, x)"
    found = live(made, values)
    assert not found.unknown
    assert words(found) == 8 + (1 if values else 0) + size + (0 if "Split" in nodes else 1)


def test_one_known_operand_of_two_says_nothing() -> None:
    for operands in ("s, x", "x, s"):
        found = live(f"s = Op(x)  a = Add({operands})  b = Concat <axis = 0> ({operands})  y = Op(a, b)")
        assert dict(found.unknown) == {"Op": 1, "Add": 1, "Concat": 1}
        assert words(found) == 8 + 1


def test_a_size_of_an_unknown_symbol_is_not_known() -> None:
    found = live("a = Op(x)  y = Op(a)", "float[sequence, mystery] a")
    assert (found.unknown, words(found)) == ((("Op", 1),), 9)


def test_the_smallest_reader_bounds_and_one_that_shrinks_does_not() -> None:
    values = "float[sequence, 9] b, float[sequence, 5] c, float[sequence, 1] d"
    found = live("a = Op(x)  b = Add(a, x)  c = Transpose(a)  d = ReduceSum(a)  y = Op(b, c, d)", values)
    assert not found.unknown
    assert words(found) == 8 + 5 + 9 + 5 + 1
    found = live("a = Op(x)  d = ReduceSum(a)  y = Op(d)", values)
    assert found.unknown == (("Op", 1),)


@pytest.mark.parametrize(("inputs", "elements"), [("float[sequence, 8] x", 2), ("float[] x", 8)])
def test_a_shape_has_a_number_an_axis(inputs: str, elements: int) -> None:
    """Eight where not even the rank is known; each an int64."""
    found = live("n = Shape(x)  y = Op(n)", "int64[] n", inputs=inputs)
    assert found.bytes == (4 * 3 * 8 if elements == 2 else 0) + 8 * elements + 4 * 3


def test_a_type_that_is_not_stated_is_the_widest_operands() -> None:
    halves = "float16[sequence, 8] h, float[sequence, 8] x"
    assert live("a = Add(h, x)  y = Op(a)", inputs=halves).bytes == 3 * 8 * (2 + 4 + 4) + 4 * 3
    assert live("a = Cast <to = 10> (x)  y = Op(a)", inputs=halves).bytes == 3 * 8 * (2 + 4 + 2) + 4 * 3


def test_a_type_that_nothing_tells_has_eight_bytes() -> None:
    graph = parsed("a = Op()  y = Op(a, x)")
    graph[0].outputs[0].shape = ir.Shape([5])
    assert largest_live_set(graph, SIZES).bytes == 4 * 3 * 8 + 8 * 5 + 4 * 3


def scan(nodes: str, attributes: str = "", shape: str = "sequence, batch, 8") -> LiveSet:
    text = f"""<ir_version: 10, opset_import: ["" : 23]>
    g (float[batch, 6] state, float[{shape}] x) => (float[batch] z)
    {{ last, all = Scan <num_scan_inputs = 1, {attributes} body = step (s, t) => (s2, u) {{ {nodes} }}> (state, x)
      z = Op(last, all) }}"""
    return largest_live_set(ir.from_onnx_text(text).graph, SIZES)


@pytest.mark.parametrize(
    ("attributes", "shape"),
    [
        ("", "sequence, batch, 8"),
        ("scan_input_axes = [1],", "batch, sequence, 8"),
        ("scan_input_axes = [2],", "batch, 8, sequence"),
    ],
)
def test_a_scan_runs_along_its_axis_and_its_states_keep_their_size(attributes: str, shape: str) -> None:
    found = scan("s2 = Neg(s)  u = Neg(t)", attributes, shape)
    assert not found.unknown
    assert not found.bodies
    outside, step = 2 * 6 + 3 * 2 * 8 + 2 * 6 + 3 * 2 * 8, 2 * 6 + 2 * 8 + 2 * 6 + 2 * 8
    assert found.bytes == 4 * (outside + step)
