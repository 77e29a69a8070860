"""Times of operators out of ONNX Runtime's profile: each node's in its run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime
import pytest
from onnx import TensorProto, helper

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.onnxruntime.operator_profile import read_profile, run_times


def node(operator: str, begin: int, duration: int, ending: str = "_kernel_time") -> dict[str, Any]:
    return {"cat": "Node", "name": f"n{ending}", "ts": begin, "dur": duration, "args": {"op_name": operator}}


def run(begin: int, duration: int) -> dict[str, Any]:
    return {"cat": "Session", "name": "model_run", "ts": begin, "dur": duration, "args": {}}


def test_a_node_belongs_to_the_run_that_began_last() -> None:
    events = [
        *(node("MatMul", 110, 30), node("MatMul", 150, 20), node("Add", 170, 1), run(100, 100)),
        *(node("MatMul", 5, 9), node("Add", 301, 4), run(300, 50), node("Add", 310, 7, "_fence_before")),
    ]
    first, second = run_times(events)
    assert (first.seconds, first.calls) == (pytest.approx(100e-6), {"MatMul": 2, "Add": 1})
    assert first.operators == {"MatMul": pytest.approx(50e-6), "Add": pytest.approx(1e-6)}
    assert (second.seconds, second.operators, second.calls) == (
        pytest.approx(50e-6),
        {"Add": pytest.approx(4e-6)},
        {"Add": 1},
    )


def test_what_is_no_profile_is_said(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="has no run"):
        run_times([node("Add", 1, 1)])
    (tmp_path / "profile.json").write_text("[")
    with pytest.raises(EngineError, match="cannot be read"):
        read_profile(tmp_path / "profile.json")


def test_what_the_installed_runtime_writes(tmp_path: Path) -> None:
    value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    nodes = [helper.make_node("MatMul", ["x", "x"], ["a"]), helper.make_node("Softmax", ["a"], ["y"])]
    model = helper.make_model(
        helper.make_graph(nodes, "g", value[:1], value[1:]),
        opset_imports=[helper.make_opsetid("", 21)],
        ir_version=10,
    )
    options = onnxruntime.SessionOptions()
    options.enable_profiling, options.profile_file_prefix = True, str(tmp_path / "p")
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    for _ in range(3):
        session.run(None, {"x": [[0.5] * 4] * 4})
    runs = read_profile(Path(session.end_profiling()))
    assert [each.calls for each in runs] == [{"MatMul": 1, "Softmax": 1}] * 3
    assert all(0 <= sum(each.operators.values()) <= each.seconds for each in runs)
    assert json.dumps([each.operators for each in runs])
