"""Which GGUF files make a model.

In: a file of several parts, or a directory. Out: all parts in order; the one model of a directory.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from llmc.compiler.base.errors import CheckpointError

# As llama.cpp's llama-gguf-split names them.
_PART = re.compile(r"(?P<stem>.*)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_SHOWN = 8


def part_paths(path: Path, number: int, count: int) -> tuple[Path, ...]:
    """The files of all parts, in order.

    Args:
        path: One of them.
        number: Which it says it is, from 0 on.
        count: How many it says there are.

    Raises:
        CheckpointError: it is not named as parts are, or others are not beside it.
    """
    match = _PART.fullmatch(path.name)
    if match is None or (int(match["number"]) - 1, int(match["count"])) != (number, count):
        raise CheckpointError(
            f"{path} is part {number + 1} of {count} and not named so; name it "
            f"…-{number + 1:05d}-of-{count:05d}.gguf as the other parts, or join them with llama.cpp's "
            "llama-gguf-split --merge."
        )
    paths = [path.with_name(f"{match['stem']}-{i + 1:05d}-of-{count:05d}.gguf") for i in range(count)]
    missing = [part.name for part in paths if not part.is_file()]
    if missing:
        raise CheckpointError(
            f"{path} is one of {count} parts, and {_listed(missing)} {'is' if len(missing) == 1 else 'are'} not "
            "beside it; fetch them all."
        )
    return tuple(paths)


def find_gguf_model(directory: Path) -> Path | None:
    """The GGUF file of the one model in ``directory``, its first part where there are several; None without any.

    What belongs to a model beside its weights (``mmproj``, an importance matrix) does not count.

    Raises:
        CheckpointError: the directory holds several models, as a repository of several quantizations does.
    """
    models: dict[str, Path] = {}
    for path in sorted(directory.glob("*.gguf")):
        match = _PART.fullmatch(path.name)
        if path.is_file() and not re.search("mmproj|imatrix", path.name, re.IGNORECASE):
            models.setdefault(f"{match['stem']} in {match['count']}" if match else path.stem, path)
    if len(models) > 1:
        raise CheckpointError(
            f"{directory} holds {len(models)} GGUF models: {_listed([path.name for path in models.values()])}; name "
            "one of these files."
        )
    return next(iter(models.values()), None)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
