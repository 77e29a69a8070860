"""Graphs whose data files are links: read, as their contents are; names that lead elsewhere by themselves are not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.graph.model_file import DataFileTensor, load_model

VALUES = np.arange(600, dtype=np.float32).reshape(20, 30)


def write(folder: Path, location: str = "model.onnx.data") -> Path:
    folder.mkdir(parents=True)
    (folder / "model.onnx.data").write_bytes(b"head" * 16 + VALUES.tobytes())
    shape = ir.Shape(VALUES.shape)
    tensor = ir.ExternalTensor(location, 64, VALUES.nbytes, ir.DataType.FLOAT, shape=shape, name="w")
    graph = ir.Graph([], [], nodes=[], initializers=[ir.val("w", const_value=tensor)], name="graph")
    onnx.save_model(ir.to_proto(ir.Model(graph, ir_version=10)), folder / "model.onnx")
    return folder / "model.onnx"


def weight(path: Path) -> ir.TensorProtocol:
    tensor = load_model(path).graph.initializers["w"].const_value
    assert isinstance(tensor, DataFileTensor)
    return tensor


def hard(folder: Path) -> Path:
    os.link(folder / "model.onnx.data", folder.parent / "backup")
    return folder / "model.onnx"


def soft(folder: Path) -> Path:
    links = folder.parent / "links"
    links.mkdir()
    for file in folder.iterdir():
        (links / file.name).symlink_to(Path("..") / folder.name / file.name)
    return links / "model.onnx"


@pytest.mark.parametrize("link", [hard, soft])
def test_links_are_read_as_what_they_lead_to(tmp_path: Path, link) -> None:
    write(tmp_path / "portable")
    tensor = weight(link(tmp_path / "portable"))
    np.testing.assert_array_equal(tensor.numpy(), VALUES)
    assert tensor.tobytes() == VALUES.tobytes()


def test_a_link_to_the_folder_and_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "portable")
    (tmp_path / "link").symlink_to("portable")
    monkeypatch.chdir(tmp_path)
    tensor = weight(Path("link/model.onnx"))
    monkeypatch.chdir("/")
    np.testing.assert_array_equal(tensor.numpy(), VALUES)


def test_the_graph_goes_on_naming_its_file_as_it_did(tmp_path: Path) -> None:
    path = write(tmp_path / "portable")
    assert (
        ir.to_proto(load_model(path)).graph.initializer == onnx.load(path, load_external_data=False).graph.initializer
    )


@pytest.mark.parametrize(
    "location", ["../portable/model.onnx.data", "/etc/hostname", "x/../../portable/model.onnx.data"]
)
def test_names_that_leave_the_folder_are_refused(tmp_path: Path, location: str) -> None:
    with pytest.raises(ArtifactError, match=r"the tensor w lies in .*, outside of the graph's folder"):
        load_model(write(tmp_path / "portable", location))
