"""The head of a GGUF file, as a peer's interpreter reads it."""

from __future__ import annotations

from pathlib import Path

import pytest

from llmc.runtimes.bench.workers.gguf_header import FILE_TYPES, TENSOR_TYPES, read_gguf

from .gguf_files import TENSORS, gguf


def test_tensors_and_values(tmp_path: Path) -> None:
    found = read_gguf(gguf(tmp_path / "m.gguf", TENSORS))
    assert found.tensors == (
        *(("token_embd.weight", "F16", 32), ("a", "F32", 2), ("b", "F32", 2), ("c", "Q4_0", 64), ("d", "type 99", 1)),
    )
    assert found.metadata == {"a": 7, "b": "x", "f": True, "g": 0.5, "general.file_type": 15}
    assert found.elements_by_type == {"F16": 32, "F32": 4, "Q4_0": 64, "type 99": 1}


def test_the_type_is_the_one_that_the_file_states(tmp_path: Path) -> None:
    """Of a mixture the tensors say little: a Q4_K_M file may hold most of its weights as Q5_0."""
    found = read_gguf(gguf(tmp_path / "m.gguf", TENSORS)).describe()
    assert (found["ftype"], found["importance_matrix"]) == ("Q4_K_M", False)
    assert found["output_tensor_type"] == "F16 (tied to the token embedding)"
    assert read_gguf(gguf(tmp_path / "m.gguf", TENSORS, kind=0)).file_type == "F32"
    assert read_gguf(gguf(tmp_path / "m.gguf", TENSORS, matrix=True)).describe()["importance_matrix"]


@pytest.mark.parametrize("kind", [None, 1024])
def test_where_it_states_none_the_largest_decides(tmp_path: Path, kind: int | None) -> None:
    """That of the most elements, not of the most tensors."""
    assert read_gguf(gguf(tmp_path / "m.gguf", TENSORS, kind=kind)).file_type == "Q4_0"
    assert read_gguf(gguf(tmp_path / "m.gguf", [], kind=kind)).file_type == "unknown"


@pytest.mark.parametrize("version", [1, 4])
def test_other_versions_are_refused(tmp_path: Path, version: int) -> None:
    with pytest.raises(ValueError, match="not a GGUF file of version 2 or 3"):
        read_gguf(gguf(tmp_path / "m.gguf", TENSORS, version))
    assert read_gguf(gguf(tmp_path / "m.gguf", TENSORS, 2)).tensors


@pytest.mark.parametrize("size", [10, 60, 300])
def test_a_head_that_ends_early_is_refused(tmp_path: Path, size: int) -> None:
    path = gguf(tmp_path / "m.gguf", TENSORS)
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match="its head cannot be read"):
        read_gguf(path)


def test_names_are_those_of_the_gguf_package() -> None:
    gguf_package = pytest.importorskip("gguf")
    tensor_types = {int(each): each.name for each in gguf_package.GGMLQuantizationType}
    assert {number: tensor_types[number] for number in TENSOR_TYPES} == TENSOR_TYPES
    file_types = {int(each): each.name for each in gguf_package.LlamaFileType}
    for number, name in FILE_TYPES.items():
        assert file_types[number].removeprefix("MOSTLY_").removeprefix("ALL_") == name
