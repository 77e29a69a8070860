from __future__ import annotations

from pathlib import Path

import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.gguf_files import find_gguf_model, part_paths


def touch(directory: Path, *names: str) -> None:
    for name in names:
        (directory / name).touch()


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ((), None),
        (("config.json",), None),
        (("m.gguf",), "m.gguf"),
        (("m.gguf", "mmproj-m-f16.gguf", "m.imatrix.gguf"), "m.gguf"),
        (("m-00002-of-00002.gguf", "m-00001-of-00002.gguf"), "m-00001-of-00002.gguf"),
        (("mmproj-BF16.gguf",), None),
    ],
)
def test_the_one_model_of_a_directory(tmp_path: Path, names: tuple[str, ...], expected: str | None) -> None:
    touch(tmp_path, *names)
    assert find_gguf_model(tmp_path) == (None if expected is None else tmp_path / expected)


@pytest.mark.parametrize(
    "names",
    [
        ("m-Q4_K_M.gguf", "m-Q8_0.gguf"),
        ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m.gguf"),
        ("m-00001-of-00002.gguf", "m-00002-of-00002.gguf", "m-00001-of-00003.gguf"),
    ],
)
def test_several_models_are_listed(tmp_path: Path, names: tuple[str, ...]) -> None:
    touch(tmp_path, *names)
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF models: m.*\.gguf, m.*\.gguf; name one of these files"):
        find_gguf_model(tmp_path)


def test_many_models_are_counted(tmp_path: Path) -> None:
    touch(tmp_path, *(f"m-Q{i:02d}.gguf" for i in range(20)))
    with pytest.raises(CheckpointError, match=r"holds 20 GGUF models: m-Q00\.gguf.*, m-Q07\.gguf and 12 more; name"):
        find_gguf_model(tmp_path)


def test_the_parts_beside_one_of_them(tmp_path: Path) -> None:
    names = [f"a-00001-of-00009-{i + 1:05d}-of-00002.gguf" for i in range(2)]
    touch(tmp_path, *names)
    for i in range(2):
        assert part_paths(tmp_path / names[i], i, 2) == tuple(tmp_path / name for name in names)


@pytest.mark.parametrize("name", ["a.gguf", "a-00001-of-00003.gguf", "a-00002-of-00002.gguf"])
def test_a_name_that_says_another_part(tmp_path: Path, name: str) -> None:
    with pytest.raises(CheckpointError, match=r"is part 1 of 2 and not named so; name it …-00001-of-00002\.gguf"):
        part_paths(tmp_path / name, 0, 2)
