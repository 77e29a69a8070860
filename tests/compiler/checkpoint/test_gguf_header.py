from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.errors import CheckpointError, MissingDependencyError


def test_metadata_and_tensors_are_the_gguf_package_s(tiny_llama_gguf: Path) -> None:
    gguf = pytest.importorskip("gguf")
    header = read_gguf_header(tiny_llama_gguf)
    reader = gguf.GGUFReader(tiny_llama_gguf)
    assert header.architecture == "llama"
    for key, field in reader.fields.items():
        if not key.startswith("GGUF."):
            assert header.metadata[key] == field.contents(), key
    assert [t.name for t in header.tensors] == [t.name for t in reader.tensors]
    for ours, theirs in zip(header.tensors, reader.tensors, strict=True):
        assert ours.offset == theirs.data_offset
        assert ours.stored_bytes == theirs.n_bytes
        assert ours.shape == tuple(reversed(theirs.shape.tolist()))


def test_real_header_is_the_gguf_package_s(smollm2_gguf: Path) -> None:
    header = read_gguf_header(smollm2_gguf)
    assert len(header.tensors) == 272
    assert len(header.metadata["tokenizer.ggml.tokens"]) == 49152
    last = max(t.offset + t.stored_bytes for t in header.tensors)
    assert last <= smollm2_gguf.stat().st_size < last + 32


def test_truncation_is_seen_from_the_offsets(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    content = tiny_llama_gguf.read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(content[:-5000])
    with pytest.raises(CheckpointError, match=r"truncated: \d+ bytes expected, \d+ found, which cuts [1-9] of 20"):
        read_gguf_header(cut)


def test_truncation_inside_the_header(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    cut = tmp_path / "cut.gguf"
    for size in (2, 10, 30, 300, 900):
        cut.write_bytes(tiny_llama_gguf.read_bytes()[:size])
        with pytest.raises(CheckpointError, match=f"truncated: it ends inside its own header, after {size} bytes"):
            read_gguf_header(cut)


def test_damaged_counts_do_not_exhaust_memory(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    content = bytearray(tiny_llama_gguf.read_bytes())
    content[24:32] = b"\xff" * 8
    (tmp_path / "bad.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated"):
        read_gguf_header(tmp_path / "bad.gguf")


def test_other_formats_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_bytes(b"PK\x03\x04" + bytes(100))
    with pytest.raises(CheckpointError, match="is not a GGUF file"):
        read_gguf_header(path)
    path.write_bytes(b"GGUF" + (1).to_bytes(4, "little") + bytes(100))
    with pytest.raises(CheckpointError, match="GGUF version 1"):
        read_gguf_header(path)


def test_one_of_several_parts_is_refused(write_gguf, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", metadata={"split.count": 3}, tensors={"a": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError, match="one of 3 parts; join them"):
        read_gguf_header(path)


def test_vocabulary_only_file_is_refused(write_gguf, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", metadata={"general.name": "x"}, tensors={})
    with pytest.raises(CheckpointError, match="no tensors"):
        read_gguf_header(path)


def test_unknown_tensor_type_is_named(write_gguf, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", tensors={"my_tensor": np.zeros((3, 32), np.float32)})
    content = bytearray(path.read_bytes())
    # The table's row: name, number of dimensions, dimensions, type, offset.
    at = content.index(b"my_tensor") + len("my_tensor") + 4 + 16
    content[at : at + 4] = (4000).to_bytes(4, "little")
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"my_tensor in .* has the ggml type 4000"):
        read_gguf_header(path)


def test_missing_gguf_package_names_the_extra(tiny_llama_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "gguf", None)
    with pytest.raises(MissingDependencyError, match=r"pip install 'llmc-toolchain\[gguf\]'"):
        read_gguf_header(tiny_llama_gguf)
