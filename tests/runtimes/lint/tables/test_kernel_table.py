"""What is asked of a GPU's provider: a graph of each operator alone; and what is made of its answers."""

from __future__ import annotations

from typing import Any

import pytest
from onnx import TensorProto
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from llmc.runtimes.lint.tables import kernel_table
from llmc.runtimes.lint.tables.kernel_table import FALLBACK, load_kernels, one_node_graph, probe, record


def newest(domain: str, name: str) -> Any:
    found = [s for s in get_all_operator_schema() if (s.domain, s.name) == (domain, name) and s.since_version <= 23]
    return max(found, key=lambda schema: schema.since_version)


def interface(domain: str, name: str, element_type: str) -> tuple[list[str], list[int]]:
    """Names of the node's inputs, and types of the graph's."""
    graph = one_node_graph(domain, newest(domain, name), element_type).graph
    return list(graph.node[0].input), [value.type.tensor_type.elem_type for value in graph.input]


def test_a_graph_of_one_operator() -> None:
    """Optional inputs are left out, others have the type that is asked for where they may."""
    assert interface("", "Add", "float16") == (["x0", "x1"], [TensorProto.FLOAT16] * 2)
    assert interface("", "Clip", "int32") == (["x0"], [TensorProto.INT32])
    assert interface("", "Gather", "bfloat16") == (["x0", "x1"], [TensorProto.BFLOAT16, TensorProto.INT64])
    assert interface("", "Where", "int8") == (
        ["x0", "x1", "x2"],
        [TensorProto.BOOL, TensorProto.INT8, TensorProto.INT8],
    )
    (attribute,) = one_node_graph("", newest("", "Cast"), "int64").graph.node[0].attribute
    assert (attribute.name, attribute.i) == ("to", TensorProto.FLOAT)
    with pytest.raises(ValueError, match="Sin takes no int64"):
        one_node_graph("", newest("", "Sin"), "int64")


@pytest.mark.parametrize(
    ("error", "answer"),
    [(None, True), (RuntimeError(f"x: {FALLBACK} by the user"), False), (RuntimeError("not a graph"), None)],
)
def test_an_answer(monkeypatch: pytest.MonkeyPatch, error: Exception | None, answer: bool | None) -> None:
    import onnxruntime

    def load(model: bytes, options: Any, *, providers: list[str]) -> None:
        assert providers == ["CUDAExecutionProvider"]
        assert options.get_session_config_entry("session.disable_cpu_ep_fallback") == "1"
        if error:
            raise error

    monkeypatch.setattr(onnxruntime, "InferenceSession", load)
    assert probe("", newest("", "Add"), "float") is answer
    assert probe("", newest("", "Sin"), "int64") is None


def test_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unknown is what gave no answer for any type; what runs nowhere is left out."""
    asked: dict[tuple[str, str], set[int]] = {}
    answers = {"Add": {"float": True, "float16": True, "int64": False}, "Sin": {"float": False}}

    def answer(domain: str, schema: Any, element_type: str) -> bool | None:
        asked.setdefault((domain, schema.name), set()).add(schema.since_version)
        known = answers.get(schema.name, {}) if domain == "" else {"float": True} if schema.name == "Gelu" else {}
        return known.get(element_type)

    monkeypatch.setattr(kernel_table, "probe", answer)
    table = record()
    assert table["operators"] == {"Add": ["float16", "float32"], "com.microsoft::Gelu": ["float32"]}
    assert "Mul" in table["unknown"]
    assert not {"Add", "Sin", "com.microsoft::Gelu"} & set(table["unknown"])
    assert asked["", "Add"] == {newest("", "Add").since_version}
    assert {domain for domain, _ in asked} == {"", "com.microsoft"}


def test_the_table_that_is_shipped() -> None:
    """Its names of types are NumPy's, no operator is known and unknown, and the core of every decoder is there."""
    known, unknown = load_kernels()
    assert {name for names in known.values() for name in names} <= {
        "bfloat16", "bool", "float16", "float32", "float64", "float8e4m3fn", "int32", "int64", "int8", "uint8"
    }  # fmt: skip
    assert not set(known) & unknown
    for name in ("MatMul", "Add", "Mul", "RMSNormalization", "com.microsoft::SkipSimplifiedLayerNormalization"):
        assert {"float16", "bfloat16"} <= known[name], name
