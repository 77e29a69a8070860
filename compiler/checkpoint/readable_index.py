"""A directory's shards for transformers, which reads an index only with the entry ``metadata``.

In: a Hugging Face directory. Out: the same directory; or, where its index is complete but for that entry, one of
links to its files with such an index, for the time of a context. The format asks for the table ``weight_map`` alone.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.safetensors_weights import INDEX_NAME


@contextmanager
def readable_index(directory: Path) -> Iterator[Path]:
    """A directory that transformers loads the weights of ``directory`` from.

    Raises:
        CheckpointError: the index is no JSON object.
    """
    index = directory / INDEX_NAME
    content = read_json_object(index) if index.is_file() else {"metadata": {}}
    if isinstance(content.get("metadata"), dict):
        yield directory
        return
    with tempfile.TemporaryDirectory() as folder:
        for path in directory.iterdir():
            if path.name != INDEX_NAME:
                (Path(folder) / path.name).symlink_to(path.resolve())
        (Path(folder) / INDEX_NAME).write_text(json.dumps({**content, "metadata": {}}), encoding="utf-8")
        yield Path(folder)
