"""What a graph is fed with for one window."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.calibration.inputs import graph_inputs

from .calibration_graphs import small_model


def test_one_row_from_its_first_token_on() -> None:
    model = small_model()
    state = ir.Value(
        name="past_key_values.1.conv_state", shape=ir.Shape(["batch", 3, 5]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    positions = ir.Value(
        name="position_ids", shape=ir.Shape(["batch", "sequence"]), type=ir.TensorType(ir.DataType.INT64)
    )
    model.graph.inputs.extend([state, positions])
    feeds = graph_inputs(model.graph, np.array([5, 6, 7]))
    assert feeds["input_ids"].tolist() == [[5, 6, 7]]
    assert feeds["attention_mask"].tolist() == [[1, 1, 1]]
    assert feeds["position_ids"].tolist() == [[0, 1, 2]]
    assert feeds["past_key_values.0.key"].shape == (1, 2, 0, 4)
    assert feeds["past_key_values.1.conv_state"].shape == (1, 3, 5)
    assert not feeds["past_key_values.1.conv_state"].any()


def test_an_input_of_unknown_size_is_refused() -> None:
    model = small_model()
    model.graph.inputs.append(
        ir.Value(name="strange", shape=ir.Shape(["elsewhere"]), type=ir.TensorType(ir.DataType.FLOAT))
    )
    with pytest.raises(UnsupportedModelError, match="size of the input strange"):
        graph_inputs(model.graph, np.array([1]))
