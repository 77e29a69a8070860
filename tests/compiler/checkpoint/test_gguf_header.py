from __future__ import annotations

import struct
import sys
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, MissingDependencyError, UnsupportedModelError
from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.checkpoint.gguf_rows import read_gguf_rows


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


SCALARS = {
    "UINT8": 200,
    "INT8": -56,
    "UINT16": 65000,
    "INT16": -536,
    "UINT32": 4294967294,
    "INT32": -2147483647,
    "FLOAT32": -0.15625,
    "BOOL": True,
    "UINT64": 2**64 - 2,
    "INT64": -(2**63) + 1,
    "FLOAT64": 1 / 3,
    "STRING": "日",
}


def test_every_kind_of_metadata(tmp_path: Path) -> None:
    """Numbers at the ends of their ranges, alone and in arrays."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "x.gguf", "llama")
    for name, value in SCALARS.items():
        kind = gguf.GGUFValueType[name]
        writer.add_key_value(f"one.{name}", value, kind)
        writer.add_key_value(f"many.{name}", [value] * 3, gguf.GGUFValueType.ARRAY, sub_type=kind)
    writer.add_tensor("a", np.zeros(4, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata = read_gguf_header(tmp_path / "x.gguf").metadata
    for name, value in SCALARS.items():
        assert metadata[f"one.{name}"] == value, name
        assert type(metadata[f"one.{name}"]) is type(value), name
        assert metadata[f"many.{name}"] == [value] * 3, name


def row(name: str, dims: tuple[int, ...], kind: int, offset: int) -> bytes:
    return text(name) + struct.pack(f"<I{len(dims)}QIQ", len(dims), *dims, kind, offset)


def text(value: str | bytes) -> bytes:
    encoded = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(encoded)) + encoded


def raw_file(
    path: Path, *rows: bytes, data: int = 48, version: int = 3, alignment: int = 32, extra: tuple[bytes, ...] = ()
) -> Path:
    """A file by the format's definition: bytes that count from 1 after the table, at the alignment."""
    pairs = [text("general.architecture") + struct.pack("<I", 8) + text("llama"), *extra]
    header = b"GGUF" + struct.pack("<IQQ", version, len(rows), len(pairs)) + b"".join([*pairs, *rows])
    path.write_bytes(header + bytes(-len(header) % alignment) + bytes(range(1, data + 1)))
    return path


F32, Q4_0 = 0, 2


def stated_alignment(value: int) -> bytes:
    return text("general.alignment") + struct.pack("<II", 4, value)


@pytest.mark.parametrize("alignment", [8, 32, 64])
def test_tensors_begin_at_the_alignment(tmp_path: Path, alignment: int) -> None:
    """Wherever the table ends, also exactly at a multiple of it."""
    ends = set()
    for length in range(64):
        extra = (text("x" * length) + struct.pack("<IB", 0, 1), stated_alignment(alignment))
        path = raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 0), data=16, alignment=alignment, extra=extra)
        (tensor,) = read_gguf_header(path).tensors
        assert path.read_bytes()[tensor.offset] == 1
        ends.add(tensor.offset % alignment)
    assert ends == {0}


def test_without_a_word_the_alignment_is_32(tmp_path: Path) -> None:
    path = raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 32))
    (tensor,) = read_gguf_header(path).tensors
    assert path.read_bytes()[tensor.offset] == 33


def test_versions_2_and_3_are_read(tmp_path: Path) -> None:
    for version in (2, 3):
        assert read_gguf_header(
            raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 0), data=16, version=version)
        ).tensors
    for version in (1, 4, 3 << 24):
        with pytest.raises(CheckpointError, match=f"is GGUF version {version} or big-endian"):
            read_gguf_header(raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 0), version=version))


def test_the_tensor_that_ends_last_says_how_long_the_file_is(tmp_path: Path) -> None:
    """Whatever its place in the table; a tensor is cut that begins before the file's end."""
    rows = (row("late", (4,), F32, 32), row("early", (4,), F32, 0))
    assert len(read_gguf_header(raw_file(tmp_path / "x.gguf", *rows, data=48)).tensors) == 2
    for data, cut in ((47, 1), (33, 1), (15, 2)):
        with pytest.raises(
            CheckpointError, match=rf"truncated: \d+ bytes expected, \d+ found, which cuts {cut} of 2"
        ):
            read_gguf_header(raw_file(tmp_path / "x.gguf", *rows, data=data))


def test_a_name_that_stands_twice_is_refused(tmp_path: Path) -> None:
    rows = (row("a", (4,), F32, 0), row("a", (4,), F32, 32))
    with pytest.raises(CheckpointError, match="names a tensor twice"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", *rows))


def test_two_names_of_the_same_bytes_are_two_tensors(tmp_path: Path) -> None:
    rows = (row("a", (4,), F32, 0), row("b", (4,), F32, 0))
    assert len(read_gguf_header(raw_file(tmp_path / "x.gguf", *rows, data=16)).tensors) == 2


def test_blocks_do_not_cross_rows(tmp_path: Path) -> None:
    """Two rows of 48 values are three blocks of 32, of which one would belong to both."""
    (tensor,) = read_gguf_header(raw_file(tmp_path / "x.gguf", row("a", (32, 2), Q4_0, 0))).tensors
    assert (tensor.shape, tensor.stored_bytes) == ((2, 32), 2 * 18)
    with pytest.raises(CheckpointError, match=r"a in .* has rows of 48 values, no multiple of the 32"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", row("a", (48, 2), Q4_0, 0)))


def test_a_piece_that_is_no_utf_8_keeps_its_bytes(tmp_path: Path) -> None:
    pieces = [b"a\xe6\x97", b"\xa5", "日".encode()]
    extra = (text("pieces") + struct.pack("<IIQ", 9, 8, 3) + b"".join(map(text, pieces)),)
    path = raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 0), data=16, extra=extra)
    read = read_gguf_header(path).metadata["pieces"]
    assert [piece.encode("utf-8", errors="surrogateescape") for piece in read] == pieces
    assert len(set(read)) == 3


def test_metadata_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="metadata of the unknown type 13"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", extra=(text("x") + struct.pack("<IB", 13, 1),)))
    for alignment in (0, 24):
        path = raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 0), extra=(stated_alignment(alignment),))
        with pytest.raises(CheckpointError, match=f"an alignment of {alignment} bytes, which is no power of two"):
            read_gguf_header(path)
    with pytest.raises(CheckpointError, match="states x twice"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", extra=(text("x") + struct.pack("<IB", 0, 1),) * 2))
    # An array of arrays, nested so deeply that a reader would run out of stack.
    nested = text("x") + struct.pack("<I", 9) + struct.pack("<IQ", 9, 1) * 5000
    with pytest.raises(CheckpointError, match="metadata of the unknown type 9"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", extra=(nested,)))
    stated = text("general.alignment") + struct.pack("<I", 8) + text("32")
    with pytest.raises(CheckpointError, match=r"states general\.alignment = '32', which is no count"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 0), extra=(stated,)))
    (tmp_path / "y.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0))
    with pytest.raises(CheckpointError, match=r"has no general\.architecture"):
        read_gguf_header(tmp_path / "y.gguf")


def test_a_file_that_says_it_is_all_there_is(write_gguf, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", metadata={"split.count": 1}, tensors={"a": np.zeros(4, np.float32)})
    assert len(read_gguf_header(path).tensors) == 1


def write_parts(write_gguf, folder: Path, *parts: dict[str, int], count: int | None = None, total: int = 3) -> Path:
    """Files as llama-gguf-split writes them: the first has all metadata. Tensors are named by their value."""
    number = count or len(parts)
    for i, names in enumerate(parts):
        split = {"split.no": i, "split.count": number, "split.tensors.count": total}
        metadata = {"general.name": "whole", **split} if i == 0 else split
        tensors = {name: np.full(4, value, np.float32) for name, value in names.items()}
        write_gguf(folder / f"m-{i + 1:05d}-of-{number:05d}.gguf", metadata=metadata, tensors=tensors)
    return folder / f"m-00001-of-{number:05d}.gguf"


def test_parts_are_read_as_one_file_whichever_is_named(write_gguf, tmp_path: Path) -> None:
    first = write_parts(write_gguf, tmp_path, {"a": 1}, {}, {"b": 2, "c": 3})
    for path in (first, tmp_path / "m-00003-of-00003.gguf"):
        header = read_gguf_header(path)
        assert header.path == path
        assert [file.name[2:7] for file in header.files] == ["00001", "00002", "00003"]
        assert header.metadata["general.name"] == "whole"
        assert {t.name: float(read_gguf_rows(t)[0]) for t in header.tensors} == {"a": 1, "b": 2, "c": 3}


def test_parts_that_do_not_make_a_whole(write_gguf, tmp_path: Path) -> None:
    first = write_parts(write_gguf, tmp_path, {"a": 1}, {"b": 2, "c": 3}, count=4)
    with pytest.raises(CheckpointError, match=r"one of 4 parts, and m-00003-of-00004\.gguf, m-.* are not beside it"):
        read_gguf_header(first)
    first = write_parts(write_gguf, tmp_path, {"a": 1}, {"b": 2})
    with pytest.raises(CheckpointError, match=r"the 2 parts of .* hold 2 tensors, 3 were expected"):
        read_gguf_header(first)
    first = write_parts(write_gguf, tmp_path, {"a": 1}, {"a": 2, "b": 2})
    with pytest.raises(CheckpointError, match="names a tensor twice"):
        read_gguf_header(first)
    first.with_name("m-00002-of-00002.gguf").write_bytes(first.read_bytes())
    with pytest.raises(CheckpointError, match="does not say that it is part 2 of 2"):
        read_gguf_header(first)


def test_a_table_that_is_too_short_is_seen(write_gguf, tmp_path: Path) -> None:
    """Its tensors would be read from a place before their own."""
    tensors = {name * 40: np.ones(8, np.float32) for name in "abc"}
    content = bytearray(write_gguf(tmp_path / "x.gguf", tensors=tensors).read_bytes())
    content[8:16] = (2).to_bytes(8, "little")
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bytes behind its last tensor: .* its tensor count is wrong"):
        read_gguf_header(tmp_path / "x.gguf")
    content[8:16] = (4).to_bytes(8, "little")
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(CheckpointError, match=r"truncated|damaged"):
        read_gguf_header(tmp_path / "x.gguf")


def test_places_and_shapes_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(
        CheckpointError, match=r"a in .* begins at byte 8 of the data, no multiple of the alignment 32"
    ):
        read_gguf_header(raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 8)))
    with pytest.raises(CheckpointError, match=r"a in .* is empty \[4, 0\]"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", row("a", (4, 0), F32, 0)))
    with pytest.raises(CheckpointError, match="a tensor of 5 dimensions"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", row("a", (4, 1, 1, 1, 1), F32, 0)))


def test_names_are_text_and_values_are_made_text(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has a name that is no UTF-8: it is damaged"):
        read_gguf_header(raw_file(tmp_path / "x.gguf", extra=(text(b"a\xff") + struct.pack("<IB", 0, 1),)))
    stated = text("general.name") + struct.pack("<I", 8) + text(b"a\xff")
    path = raw_file(tmp_path / "x.gguf", row("a", (4,), F32, 0), data=16, extra=(stated,))
    assert read_gguf_header(path).metadata["general.name"] == "a\N{REPLACEMENT CHARACTER}"


@pytest.mark.parametrize(
    ("architecture", "kind", "said"),
    [
        ("clip", None, r"the vision or audio part of a model \(mmproj\)"),
        ("llama", "mmproj", r"the vision or audio part of a model \(mmproj\)"),
        ("llama", "adapter", "a LoRA adapter"),
        ("imatrix", None, "an importance matrix"),
    ],
)
def test_files_beside_a_model_are_named(
    write_gguf, tmp_path: Path, architecture: str, kind: str | None, said: str
) -> None:
    metadata = {} if kind is None else {"general.type": kind}
    path = write_gguf(tmp_path / "x.gguf", architecture, metadata, {"a": np.zeros(4, np.float32)})
    with pytest.raises(UnsupportedModelError, match=f"x.gguf is {said} and no language model"):
        read_gguf_header(path)


def test_a_pointer_of_git_lfs_is_named(tmp_path: Path) -> None:
    path = tmp_path / "x.gguf"
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 100\n")
    with pytest.raises(CheckpointError, match=r"pointer of Git LFS .* git lfs pull"):
        read_gguf_header(path)


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


def test_a_part_that_is_not_named_as_one(write_gguf, tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "x.gguf", metadata={"split.count": 3}, tensors={"a": np.zeros(4, np.float32)})
    with pytest.raises(CheckpointError, match=r"part 1 of 3 and not named so; .*llama-gguf-split --merge"):
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
