"""One case: a copy of an input, one of its files changed, and a command that reads it.

In: a seed and a number. Out: :class:`Case`; the same numbers give the same bytes and the same command.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from .mutations import Change, change_body, change_bytes, change_graph, change_header, change_json

SHARD = "model-00001-of-*.safetensors"
INPUT, OUTPUT = "in", "out"


@dataclass(frozen=True)
class Kind:
    """What is changed, and who reads it.

    Attributes:
        name: In words.
        seed: The input that is copied.
        files: Patterns; one of the files that match is changed.
        change: How.
        commands: One of them is run; ``IN`` and ``OUT`` stand for the copy and the directory to make.
    """

    name: str
    seed: str
    files: tuple[str, ...]
    change: Change
    commands: tuple[str, ...]


EXPORT = (
    "export IN -o OUT --verify off",
    "export IN -o OUT --verify off",
    "export IN -o OUT",
    "compile IN -o OUT --precision int4 --effort round",
)
READ_PORTABLE = (
    "inspect IN",
    "optimize IN -o OUT",
    "optimize IN -o OUT --precision int4 --effort round",
    "verify IN",
)
READ_ENGINE = (
    "inspect IN",
    "verify IN",
    "generate IN -p ab --max-tokens 3",
    "generate IN --chat -p ab --max-tokens 3",
)
KINDS = (
    Kind("configurations", "checkpoint", ("config.json",), change_json, EXPORT),
    Kind("safetensors headers", "checkpoint", (SHARD,), change_header, EXPORT),
    Kind("safetensors bodies", "checkpoint", (SHARD,), change_body, EXPORT),
    Kind("indexes", "checkpoint", ("*.index.json",), change_json, EXPORT),
    Kind("tokenizers", "checkpoint", ("tokenizer.json",), change_json, (EXPORT[0], EXPORT[2], EXPORT[3])),
    Kind(
        "files beside",
        "checkpoint",
        ("generation_config.json", "tokenizer_config.json", "chat_template.jinja"),
        lambda rng, data: (change_json if data[:1] == b"{" and data[:2] != b"{{" else change_bytes)(rng, data),
        EXPORT,
    ),
    Kind(
        "GGUF files", "gguf", ("model.gguf",), change_bytes, tuple(c.replace("IN", "IN/model.gguf") for c in EXPORT)
    ),
    Kind("ONNX files", "portable", ("model.onnx",), change_graph, (*READ_PORTABLE, "inspect IN/model.onnx")),
    Kind("ONNX files of engines", "engine", ("*.onnx",), change_graph, READ_ENGINE),
    Kind("manifests", "portable", ("llmc.json",), change_json, READ_PORTABLE),
    Kind("manifests of engines", "engine", ("llmc.json",), change_json, READ_ENGINE),
    Kind(
        "other files of engines",
        "engine",
        ("golden.npz", "model.onnx.data", "config.json", "tokenizer.json", "generation_config.json"),
        lambda rng, data: (change_json if data[:1] == b"{" else change_bytes)(rng, data),
        READ_ENGINE,
    ),
)


@dataclass(frozen=True)
class Case:
    """A command on a changed input.

    Attributes:
        number: Which one.
        kind: What was changed.
        file: Its name.
        arguments: Of ``llmc``.
    """

    number: int
    kind: Kind
    file: str
    arguments: tuple[str, ...]


def write_case(seeds: Path, folder: Path, seed: int, number: int) -> Case:
    """Write the changed input of a case into the empty ``folder``."""
    rng = random.Random(f"{seed} {number}")
    kind = KINDS[number % len(KINDS)]
    shutil.copytree(seeds / kind.seed, folder / INPUT)
    path = rng.choice(sorted(file for pattern in kind.files for file in (folder / INPUT).glob(pattern)))
    before = path.read_bytes()
    path.write_bytes(kind.change(rng, before))
    _record(folder / INPUT, path, kind, rng)
    words = rng.choice(kind.commands).split()
    places = {
        "IN": INPUT,
        "OUT": OUTPUT,
        "IN/model.gguf": f"{INPUT}/model.gguf",
        "IN/model.onnx": f"{INPUT}/model.onnx",
    }
    return Case(number, kind, path.name, tuple(places.get(word, word) for word in words))


def _record(artifact: Path, path: Path, kind: Kind, rng: random.Random) -> None:
    """Let a manifest record the changed file, most times: else it is refused for its size or its hash alone."""
    manifest = artifact / "llmc.json"
    if not manifest.is_file() or path == manifest or rng.random() < 0.2:
        return
    value = json.loads(manifest.read_bytes())
    data = path.read_bytes()
    value["files"][path.name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    manifest.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n", encoding="utf-8")
