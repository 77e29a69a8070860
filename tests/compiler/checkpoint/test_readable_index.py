"""An index without the entry that transformers wants is one all the same."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.readable_index import readable_index
from llmc.compiler.checkpoint.safetensors_weights import INDEX_NAME


@pytest.mark.parametrize("content", [None, {"metadata": {"total_size": 8}, "weight_map": {"a": "x"}}])
def test_a_directory_that_transformers_reads_is_given_as_it_is(tmp_path: Path, content: object) -> None:
    if content is not None:
        (tmp_path / INDEX_NAME).write_text(json.dumps(content))
    with readable_index(tmp_path) as readable:
        assert readable == tmp_path


@pytest.mark.parametrize("extra", [{}, {"metadata": None}])
def test_the_entry_is_added_beside_links(tmp_path: Path, extra: dict[str, object]) -> None:
    (tmp_path / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": "x.safetensors"}, **extra}))
    (tmp_path / "x.safetensors").write_bytes(b"content")
    before = sorted(path.name for path in tmp_path.iterdir())
    with readable_index(tmp_path) as readable:
        assert json.loads((readable / INDEX_NAME).read_text()) == {
            "metadata": {},
            "weight_map": {"a": "x.safetensors"},
        }
        assert (readable / "x.safetensors").read_bytes() == b"content"
    assert not readable.exists()
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert "total_size" not in (tmp_path / INDEX_NAME).read_text()


def test_a_broken_index_is_named(tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text("{")
    with (
        pytest.raises(CheckpointError, match=r"index\.json is not a JSON object"),
        readable_index(tmp_path),
    ):
        pass
