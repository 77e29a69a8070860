"""What a directory without config.json holds instead of a Hugging Face checkpoint.

In: the directory. Out: one sentence: what lies there, and what to name.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import islice
from pathlib import Path
from typing import Final

_MOST_ENTRIES: Final = 1000
"""Of a directory that may be anybody's home."""
_SHOWN: Final = 3
_NAME_ONE: Final = "name a directory with a Hugging Face checkpoint, or a .gguf file"
_KINDS: Final = (
    (
        ("model_index.json",),
        "is a pipeline of diffusers, which makes pictures, sound or films ({}), and no language model; " + _NAME_ONE,
    ),
    (
        ("params.json", "consolidated*.pth", "consolidated*.pt", "consolidated*.safetensors"),
        "has no config.json but a model in the layout that its makers use themselves ({}); name the same model in "
        "Hugging Face's layout, which most repositories hold beside it, or convert it with transformers' scripts",
    ),
    (
        ("*.safetensors", "*.safetensors.index.json"),
        "has weights ({}) and no config.json, which says what model they are of; fetch it from where they came from",
    ),
    (("pytorch_model*.bin",), "has weights ({}) and no config.json; fetch it from where they came from"),
    (("*.onnx",), "has no config.json but a graph ({}), and what llmc compiles is a checkpoint; " + _NAME_ONE),
)
"""Patterns of names, and what is said where one is there."""


def no_checkpoint(directory: Path) -> str:
    """Why ``directory``, which has no config.json, cannot be compiled, and what can be done."""
    names = sorted(path.name for path in islice(directory.iterdir(), _MOST_ENTRIES)) if directory.is_dir() else []
    if directory.is_dir() and not names:
        return f"{directory} is empty and has no config.json; {_NAME_ONE}."
    paths = [Path(name) for name in names]
    for patterns, sentence in _KINDS:
        if there := [path.name for path in paths if any(path.match(pattern) for pattern in patterns)]:
            return f"{directory} {sentence.format(_listed(there))}."
    if inner := [str(directory / name) for name in names if (directory / name / "config.json").is_file()]:
        return (
            f"{directory} has no config.json, but {_listed(inner)} {'has' if len(inner) == 1 else 'have'}: name one."
        )
    return f"{directory} has no config.json; {_NAME_ONE}."


def _listed(names: Iterable[str]) -> str:
    names = list(names)
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
