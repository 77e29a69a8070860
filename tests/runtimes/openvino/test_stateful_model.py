"""A graph of standard operators becomes a model that keeps its cache: its form, its numbers, its rows."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.openvino.stateful_model import _refusal, read_stateful

from .tiny_graph import HEADS, KV_HEADS, OUTPUTS, STATE, WIDTH, WINDOWS, attend, save

openvino = pytest.importorskip("openvino", reason="openvino is not installed")

ROWS = [[3, 1, 4, 1, 5, 2, 6], [2, 7, 1, 0, 2, 6, 1]]


@pytest.fixture(scope="module")
def graph(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(tmp_path_factory.mktemp("graph") / "model.onnx")


@pytest.fixture(scope="module")
def model(graph: Path) -> Any:
    return read_stateful(openvino, graph)


@pytest.fixture(scope="module")
def compiled(model: Any) -> Any:
    options = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32", "INFERENCE_NUM_THREADS": 1}
    return openvino.Core().compile_model(model, "CPU", options)


def feed(request: Any, chunk: list[list[int]], held: int, beam: list[int] | None = None) -> np.ndarray:
    """Logits of a chunk of as many tokens in each row."""
    ids = np.array(chunk, np.int64)
    rows = np.arange(len(chunk)) if beam is None else np.array(beam)
    mask = np.ones((len(chunk), held + ids.shape[1]), np.int64)
    made = request.infer({"input_ids": ids, "attention_mask": mask, "beam_idx": rows.astype(np.int32)})
    return np.array(made[0])


def test_inputs_and_outputs(model: Any) -> None:
    assert {item.get_any_name() for item in model.inputs} == {"input_ids", "attention_mask", "beam_idx"}
    assert [item.get_any_name() for item in model.outputs] == ["logits"]
    assert model.input("beam_idx").get_element_type().get_type_name() == "i32"


def test_the_form_that_the_plugin_fuses(model: Any) -> None:
    """A state per key, value and convolution; no Tile, no padded mask, no guard; one mask of floats a window."""
    count = Counter(node.get_type_name() for node in model.get_ordered_ops())
    layers = len(WINDOWS)
    expected = {"ScaledDotProductAttention": layers, "ReadValue": 2 * layers + 1, "Assign": 2 * layers + 1}
    assert {kind: count[kind] for kind in expected} == expected
    assert (count["Tile"], count["Pad"], count["IsNaN"], count["Select"]) == (0, 0, 0, 2)


def test_a_group_s_key_stands_beside_itself(model: Any) -> None:
    """[batch, kv_heads, group, slots, width], whose second and third dimension become heads. The plugin that fuses
    it takes any order for this one, so numbers do not tell."""
    shapes = [
        [-1 if dim.is_dynamic else dim.get_length() for dim in node.get_output_partial_shape(0)]
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Broadcast" and len(node.get_output_partial_shape(0)) == 5
    ]
    assert shapes == [[-1, KV_HEADS, HEADS // KV_HEADS, -1, WIDTH]] * 2 * len(WINDOWS)


def test_rows_are_picked_of_every_state(model: Any) -> None:
    for node in model.get_ordered_ops():
        if node.get_type_name() == "ReadValue":
            readers = {target.get_node().get_type_name() for target in node.output(0).get_target_inputs()}
            assert readers <= {"Gather", "ShapeOf"}
            assert "Gather" in readers


def test_states_begin_without_tokens_or_as_zeros(model: Any, compiled: Any) -> None:
    shapes = Counter(
        tuple(-1 if dim.is_dynamic else dim.get_length() for dim in node.get_output_partial_shape(0))
        for node in model.get_ordered_ops()
        if node.get_type_name() == "ReadValue"
    )
    assert shapes == {(-1, KV_HEADS, -1, WIDTH): 2 * len(WINDOWS), (-1, STATE): 1}
    for batch in (1, 3):
        request = compiled.create_infer_request()
        made = feed(request, [[5]] * batch, 0)
        assert made.shape == (batch, 1, OUTPUTS)
        assert made[0, 0, -STATE:].tolist() == [5] * STATE
        np.testing.assert_allclose(made[-1, 0, :-STATE], attend([5])[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("widths", [[7], [1] * 7, [3, 1, 2, 1]])
def test_numbers_in_chunks(compiled: Any, widths: list[int]) -> None:
    request = compiled.create_infer_request()
    for _ in range(2):
        done = 0
        for width in widths:
            made = feed(request, [row[done : done + width] for row in ROWS], done)
            for index, row in enumerate(ROWS):
                expected = attend(row)[done : done + width]
                np.testing.assert_allclose(made[index, :, :-STATE], expected, rtol=1e-5, atol=1e-6)
            done += width
        request.reset_state()


def test_beam_idx_picks_rows(compiled: Any) -> None:
    """Of the caches and of the state; a row may be picked twice."""
    for beam in ([1, 0], [0, 0]):
        request = compiled.create_infer_request()
        feed(request, [row[:3] for row in ROWS], 0)
        made = feed(request, [[4], [7]], 3, beam)
        for index, (origin, token) in enumerate(zip(beam, (4, 7), strict=True)):
            expected = attend([*ROWS[origin][:3], token])[-1]
            np.testing.assert_allclose(made[index, 0, :-STATE], expected, rtol=1e-5, atol=1e-6)
            assert made[index, 0, -STATE:].tolist() == [2 * ROWS[origin][0] + token] * STATE


def test_names_are_the_same_each_time(graph: Path, model: Any) -> None:
    """OpenVINO counts all nodes that the process ever made."""
    names = [node.get_friendly_name() for node in model.get_ordered_ops()]
    assert [node.get_friendly_name() for node in read_stateful(openvino, graph).get_ordered_ops()] == names
    assert len(set(names)) == len(names)


def test_a_graph_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no graph")
    with pytest.raises(EngineError, match=r"^OpenVINO 2\d+\.\S+ refuses model\.onnx: ") as raised:
        read_stateful(openvino, tmp_path / "model.onnx")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        (
            "Check failed\nOpenVINO does not support these\nConversion is failed for: Scan-11\nSummary: see above",
            "OpenVINO 1.2 does not read Scan-11 of g.onnx; compile the model for --target cpu",
        ),
        ("Exception from x.cpp:3\n  the file is damaged \n\n", "OpenVINO 1.2 refuses g.onnx: the file is damaged"),
        ("", "OpenVINO 1.2 refuses g.onnx: no reason given"),
    ],
)
def test_a_refusal_is_one_sentence(message: str, expected: str) -> None:
    assert _refusal("1.2", "g.onnx", message) == expected
