"""What is written down of a runtime's answers; the runtime is a function of the test's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from llmc.runtimes.lint.tables import ask, record_operators, record_traps
from llmc.runtimes.lint.tables.asking import Answer
from llmc.runtimes.lint.tables.attention_traps import attention
from llmc.runtimes.lint.tables.node_cases import NodeCase
from llmc.runtimes.lint.tables.probe import Probe, Trap, make_probe
from llmc.runtimes.lint.tables.record_traps import NOT_THERE, ask_probe
from llmc.runtimes.lint.tables.table import VersionRow


class Runtime:
    """An asker; what was asked, and how often it was started anew."""

    def __init__(self, answer: Callable[..., Answer], runtime: str = "onnxruntime") -> None:
        self.answer, self.runtime = answer, runtime
        self.asked: list[tuple[Any, bool]] = []
        self.restarts = 0
        self.kernels: list[Any] = []
        self.schemas: list[Any] = []

    def restart(self) -> None:
        self.restarts += 1

    def ask(self, model: bytes, inputs: Any = None, *, optimize: bool = False) -> Answer:
        self.asked.append((inputs, optimize))
        return self.answer(onnx.load_from_string(model))


def negation(slots: int = 4, **valid: int) -> Probe:
    """``y = -x`` of a buffer of slots."""
    x = np.ones((1, 1, slots, 1), np.float32)
    node = helper.make_node("Neg", ["x"], ["y"])
    return make_probe([node], {"x": x}, {"y": (TensorProto.FLOAT, [1, 1, slots, 1])}, valid=valid)


def numbers(*values: float) -> list[Any]:
    return [np.array(values, np.float32).reshape(1, 1, -1, 1)]


def graph_of(*op_types: str) -> bytes:
    nodes = [helper.make_node(op_type, ["x"], ["y"]) for op_type in op_types]
    return helper.make_model(helper.make_graph(nodes, "g", [], [])).SerializeToString()


RIGHT = Answer(True, outputs=numbers(-1, -1, -1, -1))


@pytest.mark.parametrize(
    ("answer", "outcome", "message"),
    [
        (RIGHT, "runs", ""),
        (Answer(True), "runs", ""),  # only built
        (Answer(False, "Exception from x.cpp:1: no such mode"), "refused", "no such mode"),
        (Answer(False, "the end", crashed=True), "wrong", "the end"),
        (Answer(True, unread=("lengths", "mask")), "wrong", "reads nothing from lengths, mask"),
        (Answer(True, outputs=numbers(-1, -1, -1, 1)), "wrong", "off by up to 2, where numbers reach 1"),
        (Answer(True, outputs=numbers(-1, -1, -1, -1.01)), "wrong", "off by up to 0.01, where numbers reach 1"),
    ],
)
def test_what_becomes_of_a_probe(answer: Answer, outcome: str, message: str) -> None:
    runtime = Runtime(lambda model: answer)
    assert ask_probe(runtime, negation()) == (outcome, message)  # type: ignore[arg-type]
    ((inputs, optimize),) = runtime.asked
    assert (list(inputs), optimize, runtime.restarts) == (["x"], False, 1)


def test_slots_that_are_not_defined_may_hold_anything() -> None:
    runtime = Runtime(lambda model: Answer(True, outputs=numbers(-1, -1, -1, 7)))
    assert ask_probe(runtime, negation(y=3))[0] == "runs"  # type: ignore[arg-type]
    assert ask_probe(runtime, negation(y=4))[0] == "wrong"  # type: ignore[arg-type]


def test_an_operator_that_should_have_been_replaced_is_slow() -> None:
    """The runtime optimizes then, and what it made may round to eight bits."""
    rough = Answer(True, outputs=numbers(-1, -1, -1, -1.01), graph=graph_of("Neg", "Add"))
    runtime = Runtime(lambda model: rough)
    assert ask_probe(runtime, negation(), "Neg") == ("slow", "runs Neg, Add")  # type: ignore[arg-type]
    assert ask_probe(runtime, negation(), "Mul") == ("runs", "")  # type: ignore[arg-type]
    assert ask_probe(runtime, negation(), optimize=True) == ("runs", "")  # type: ignore[arg-type]
    assert ask_probe(runtime, negation(), tolerance=0.02) == ("runs", "")  # type: ignore[arg-type]
    assert [optimize for _, optimize in runtime.asked] == [True, True, True, False]


def test_each_trap_that_concerns_the_runtime_with_its_near_miss(monkeypatch: pytest.MonkeyPatch) -> None:
    traps = (
        Trap("a", negation(), negation(2), ("onnxruntime",)),
        Trap("b", negation(), negation(2), ("openvino",)),
        Trap("c", negation(2), negation(), ("openvino", "onnxruntime"), cost="it copies"),
        Trap("d", negation(), negation(2), ("onnxruntime",), cost="it copies", optimized=True),
    )
    monkeypatch.setattr(record_traps, "TRAPS", traps)

    def answer(model: onnx.ModelProto) -> Answer:
        slots = model.graph.input[0].type.tensor_type.shape.dim[2].dim_value
        return Answer(True, outputs=numbers(-1, -1)) if slots == 2 else Answer(False, "no")

    runtime = Runtime(answer)
    rows = record_traps.record_traps(runtime, "onnxruntime")  # type: ignore[arg-type]
    assert {name: (row.outcome, row.near_miss, row.message) for name, row in rows.items()} == {
        "a": ("refused", "runs", "no"),
        "c": ("slow", "refused", "it copies"),
        "d": ("refused", "runs", "no"),
    }
    assert [optimize for _, optimize in runtime.asked] == [False] * 4 + [True] * 2


def test_definitions_that_are_treated_alike_are_one() -> None:
    rows = [VersionRow(7, ("a",)), VersionRow(13, ("a",)), VersionRow(14, ("a", "b")), VersionRow(19, ("a",))]
    assert record_operators._merge(rows) == (rows[0], rows[2], rows[3])


def case(outputs: Any = None, **attributes: Any) -> NodeCase:
    """A test of Attention."""
    probe = attention(mask=True, **attributes)
    return NodeCase("attention_test", probe.model, probe.inputs, outputs or [])


def test_outcomes_of_a_test() -> None:
    made = NodeCase("neg", negation().model, negation().inputs, numbers(-1, -1, -1, -1))
    assert record_operators._outcome(made, RIGHT) == ("runs", "")
    assert record_operators._outcome(made, Answer(False, "not a registered op")) == ("refused", NOT_THERE)
    wrong = Answer(True, outputs=numbers(-1, -1, -1, 0))
    assert record_operators._outcome(made, wrong) == ("wrong", "off by up to 1, where numbers reach 1")
    bernoulli = onnx.ModelProto()
    bernoulli.CopyFrom(made.model)
    bernoulli.graph.node[0].op_type = "RandomUniformLike"
    assert record_operators._outcome(replace(made, model=bernoulli), wrong) == ("runs", "")


def test_nothing_is_learnt_from_a_test_that_ends_the_process() -> None:
    made = case()
    (found,) = record_operators._experience(Runtime(lambda model: Answer(False, "no")), made)  # type: ignore[arg-type]
    assert (found.case, found.outcome, found.message) == ("attention_test", "refused", "no")
    assert {"T1=float16", "input attn_mask"} <= found.features
    assert found.types == {"T1=float16", "T2=float16", "U=bool"}
    crashed = Runtime(lambda model: Answer(False, "no", crashed=True))
    assert record_operators._experience(crashed, made) == []  # type: ignore[arg-type]
    explained = replace(made, name="attention_local_window_test")
    assert record_operators._experience(crashed, explained) == []  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("nodes", "kind"),
    [
        (("Attention",), ""),
        (("Cast", "Attention"), ""),
        (("MatMul", "Softmax"), "expanded"),
        (("Other",), ""),
        (("Attention", "InsertedPrecisionFreeCast"), "converted"),
    ],
)
def test_what_runs_in_an_operators_place(nodes: tuple[str, ...], kind: str) -> None:
    made = [helper.make_node(name.partition("Inserted")[0] or "Cast", ["x"], ["y"], name=name) for name in nodes]
    graph = helper.make_model(helper.make_graph(made, "g", [], [])).SerializeToString()
    assert record_operators._replaced(case(), Answer(True, graph=graph)) == kind
    assert record_operators._replaced(case(), Answer(True)) == ""


def test_tensorrt_may_decompose_attention() -> None:
    seen: list[dict[str, Any]] = []

    def answer(model: onnx.ModelProto) -> Answer:
        seen.append({item.name: item.i for item in model.graph.node[0].attribute})
        return Answer(True)

    for runtime in ("tensorrt-rtx", "openvino"):
        record_operators._ask(Runtime(answer, runtime), case(is_causal=0))  # type: ignore[arg-type]
    assert seen == [{"is_causal": 0, "TRT_decomposable": 1}, {"is_causal": 0}]


def test_inputs_that_are_accepted_and_not_read() -> None:
    """By the names of ONNX's definition; required inputs are none of them."""
    runtime = Runtime(lambda model: Answer(True, unread=("mask", "q", "elsewhere")))
    assert record_operators._unread(runtime, [case()]) == ("attn_mask",)  # type: ignore[arg-type]


def test_kernels_of_a_runtime_and_its_own_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """float16 runs between conversions where there is a kernel for float32 alone."""
    monkeypatch.setattr(record_operators, "_microsoft_names", lambda: ["A", "B", "C", "D"])
    runtime = Runtime(lambda model: Answer(True))
    runtime.kernels = [
        ["com.microsoft", "A", 1, 1, {"T": ["tensor(float)"]}],
        ["com.microsoft", "B", 1, 1, {"T": ["tensor(float16)", "tensor(float)"], "T1": ["tensor(int8)"]}],
        ["com.microsoft", "C", 1, 1, {"T1": ["tensor(double)"]}],
        ["com.microsoft", "C", 2, 2, {"T1": ["tensor(uint8)"]}],
        ["", "D", 1, 1, {"T": ["tensor(float)"]}],
    ]
    runtime.schemas = [["A", 3, 0, ["alpha", "beta"]]]
    rows = record_operators._kernel_rows(runtime)  # type: ignore[arg-type]
    found = {name.removeprefix("com.microsoft::"): row.versions[0] for name, row in rows.items()}
    assert found == {
        "A": VersionRow(1, ("float32", "float16"), ("float16",)),
        "B": VersionRow(1, ("float16", "float32")),
        "C": VersionRow(1, ("float64", "uint8")),
        "D": VersionRow(1, (), message=NOT_THERE),
    }
    signature = rows["com.microsoft::A"].signature
    assert signature is not None
    assert (signature.inputs, signature.outputs, signature.attributes) == (3, 0, ("alpha", "beta"))
    assert rows["com.microsoft::B"].signature is None


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int64).reshape(2, 3),
        np.arange(6, dtype=np.float16).reshape(2, 3).T,
        np.array(2.5, np.float32),
        np.zeros((0, 2), np.int8),
        np.array([["a"], ["b"]], object),
    ],
    ids=["int64", "turned", "scalar", "empty", "text"],
)
def test_arrays_come_back_from_json(array: Any) -> None:
    found = ask.to_arrays({"x": ask.array_to_json(array)})["x"]
    assert found.shape == array.shape
    assert found.dtype == array.dtype
    assert found.tolist() == array.tolist()
    assert ask.array_to_json([1, 2]) is None


def network(layers: list[tuple[list[str | None], list[str]]], outputs: list[str], inputs: list[str]) -> Any:
    """A TensorRT network of layers (inputs, outputs)."""

    def tensor(name: str | None) -> Any:
        return None if name is None else SimpleNamespace(name=name)

    def layer(read: list[str | None], made: list[str]) -> Any:
        return SimpleNamespace(
            num_inputs=len(read),
            num_outputs=len(made),
            get_input=lambda index: tensor(read[index]),
            get_output=lambda index: tensor(made[index]),
        )

    built = [layer(*each) for each in layers]
    return SimpleNamespace(
        num_layers=len(built),
        get_layer=lambda index: built[index],
        num_outputs=len(outputs),
        get_output=lambda index: tensor(outputs[index]),
        num_inputs=len(inputs),
        get_input=lambda index: tensor(inputs[index]),
    )


def test_inputs_that_no_output_depends_on() -> None:
    """Through any number of layers; one that is read by a layer whose output goes nowhere is not read."""
    layers: list[tuple[list[str | None], list[str]]] = [
        (["x", None, "w"], ["a", "b"]),
        (["b"], ["y"]),
        (["lengths"], ["nowhere"]),
        (["m"], ["z"]),
    ]
    found = ask.unread_inputs(network(layers, ["y", "z", "through"], ["x", "w", "lengths", "m", "through", "idle"]))
    assert found == ["lengths", "idle"]
