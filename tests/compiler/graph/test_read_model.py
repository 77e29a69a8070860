from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.graph.read_model import read_model

TEXT = '<ir_version: 10, opset_import: ["": 23]> g (float[2] x) => (float[2] y) { y = Add(x, x) }'


def test_a_model_is_read(tmp_path: Path) -> None:
    onnx.save(onnx.parser.parse_model(TEXT), tmp_path / "m.onnx")
    assert [node.op_type for node in read_model(tmp_path / "m.onnx").graph] == ["Add"]


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[: len(data) // 2], "cannot be read as an ONNX model"),
        (lambda data: b"\xff" * 40 + data, "cannot be read as an ONNX model"),
        (lambda data: b"", "is not an ONNX model: it has neither operators"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n", "git-lfs pointer"),
    ],
)
def test_files_that_are_none(tmp_path: Path, damage: object, message: str) -> None:
    data = onnx.parser.parse_model(TEXT).SerializeToString()
    (tmp_path / "m.onnx").write_bytes(damage(data))  # type: ignore[operator]
    with pytest.raises(ArtifactError, match=message):
        read_model(tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="cannot be read as an ONNX model"):
        read_model(tmp_path / "none.onnx")


def test_an_initializer_of_another_shape_than_is_declared(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32), "w"))
    model.graph.value_info.append(onnx.helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, [2, 3]))
    onnx.save(model, tmp_path / "m.onnx")
    assert read_model(tmp_path / "m.onnx")
    model.graph.initializer[0].dims[:] = [3, 2, 1]
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match=r"w is declared as \[2, 3\] and stored as \[3, 2, 1\]; make the"):
        read_model(tmp_path / "m.onnx")


def test_an_initializer_of_no_type(tmp_path: Path) -> None:
    model = onnx.parser.parse_model(TEXT)
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros((2, 3), np.float32), "w"))
    model.graph.initializer[0].data_type = onnx.TensorProto.UNDEFINED
    onnx.save(model, tmp_path / "m.onnx")
    with pytest.raises(ArtifactError, match="says of no type that w is stored in"):
        read_model(tmp_path / "m.onnx")
