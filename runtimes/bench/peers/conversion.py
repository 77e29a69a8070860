"""A checkpoint in the form that a peer opens, made by the peer's own converter and kept by content.

In: an installation, a checkpoint and a type of numbers. Out: the file or folder to open::

    ROOT/models/NAME-TYPE-KEY/model        what the converter wrote
    ROOT/models/NAME-TYPE-KEY/source.json  of what, by which packages
    ROOT/models/.NAME-TYPE-….partial       being made

KEY is of the checkpoint's bytes, the environment's versions and the converter's text, so that a model made of other
weights or by another release is never taken for this one.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmc.compiler.base.errors import CheckpointError, EngineError, UsageError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.runtimes.bench.peers.installation import SOURCE_FOLDER, Installation, whole_folder

MODEL, RECORD = "model", "source.json"
GGUF_SUFFIX = ".gguf"
WEIGHTS = ".safetensors"
OFFLINE = {"HF_HUB_OFFLINE": "1", "DO_NOT_TRACK": "1"}
"""Without the first, converters ask the hub about a folder on the disk: minutes where there is no network."""
PIECE = 1 << 22
TAIL_LINES = 15


class SourceModel:
    """What is converted: a folder with ``config.json`` and safetensors, or a GGUF file.

    Attributes:
        path: It, absolute.
        files: Its files: one, or those of the folder.
    """

    def __init__(self, path: Path, files: Sequence[Path]) -> None:
        """Nothing is read yet."""
        self.path, self.files = path, tuple(files)
        self._digest: str | None = None

    @property
    def is_gguf(self) -> bool:
        """Whether it is a GGUF file."""
        return self.path.is_file()

    @classmethod
    def find(cls, path: Path) -> SourceModel:
        """Look what lies there.

        Raises:
            CheckpointError: neither a GGUF file nor a folder with a configuration and safetensors.
        """
        path = path.absolute()
        if path.is_file() and path.suffix == GGUF_SUFFIX:
            files = [path]
        elif (path / "config.json").is_file() and any(path.glob(f"*{WEIGHTS}")):
            files = sorted(file for file in path.iterdir() if file.is_file())
        else:
            raise CheckpointError(
                f"{path} is neither a GGUF file nor a folder with config.json and safetensors, which is what peers' "
                "converters read"
            )
        return cls(path, files)

    def digest(self, progress: Progress = NO_PROGRESS) -> str:
        """Hash of the files' names and bytes, which are read once, when somebody first asks."""
        if self._digest is None:
            total = sum(file.stat().st_size for file in self.files)
            progress.start(f"Reading {self.path.name}", total, "bytes")
            digest, done = hashlib.sha256(), 0
            for file in self.files:
                digest.update(f"{file.name} {file.stat().st_size}\n".encode())
                for piece in _pieces(file):
                    digest.update(piece)
                    done += len(piece)
                    progress.advance(done)
            self._digest = digest.hexdigest()
        return self._digest


def _pieces(file: Path) -> Iterator[bytes]:
    with file.open("rb") as content:
        while piece := content.read(PIECE):
            yield piece


def converted(
    installation: Installation, source: SourceModel, kind: str, root: Path, progress: Progress = NO_PROGRESS
) -> Path:
    """What the peer opens of ``source`` in numbers of type ``kind``; converted unless it was before.

    A peer without a converter opens the source itself; llama.cpp does so with a GGUF file.

    Raises:
        UsageError: a GGUF file for a peer that reads none.
        EngineError: the converter refused; the end of what it wrote.
        MachineError: the folder cannot be written.
    """
    environment = installation.environment
    if source.is_gguf and environment.source is None:
        raise UsageError(
            f"peer {environment.name} reads a folder with config.json and safetensors, and {source.path.name} is a "
            "GGUF file"
        )
    script = environment.script
    if script is None or source.is_gguf:
        return source.path
    content = f"{source.digest(progress)} {environment.key}".encode() + script.read_bytes()
    key = hashlib.sha256(content).hexdigest()[:16]
    directory = root / "models" / f"{environment.name}-{kind}-{key}"
    if not (directory / RECORD).is_file():
        progress.start(f"Converting {source.path.name} for {environment.name}: {kind}")
        _convert(installation, script, source, kind, directory)
    return directory / MODEL


def _convert(installation: Installation, script: Path, source: SourceModel, kind: str, directory: Path) -> None:
    with whole_folder(directory) as folder:
        _run_converter(installation, script, source, kind, folder / MODEL)
        record = {"source": source.path.name, "digest": source.digest(), "versions": installation.versions}
        (folder / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def _run_converter(installation: Installation, script: Path, source: SourceModel, kind: str, output: Path) -> None:
    """``PYTHON converters/SCRIPT SOURCE OUTPUT TYPE ENVIRONMENT'S-SOURCE-FOLDER``, off the network."""
    environment = installation.environment
    arguments = [source.path, output, kind, installation.directory / SOURCE_FOLDER]
    settings = [f"{key}={value}" for key, value in OFFLINE.items()]
    command = ["env", *settings, str(installation.python), "-I", str(script), *map(str, arguments)]
    with tempfile.TemporaryDirectory() as elsewhere:  # some write caches into the current folder
        done = subprocess.run(
            command, cwd=elsewhere, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False
        )
    if done.returncode or not output.exists():
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-TAIL_LINES:])
        raise EngineError(
            f"{environment.name}: its converter made no {kind} model of {source.path} "
            f"(status {done.returncode})\n{tail}"
        )
