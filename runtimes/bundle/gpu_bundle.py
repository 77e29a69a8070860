"""What a GPU machine without a network needs, in parts: ``python -m llmc.runtimes.bundle.gpu_bundle``.

In: this checkout, a package index, files to take along. Out: a folder with

    bundle.part00 …    one tar archive, not compressed (wheels are), cut into parts
    SHA256SUMS         of each part, in their order
    install.sh         checks the parts, unpacks them, installs the wheels beside what the machine has

    python -m llmc.runtimes.bundle.gpu_bundle -o dist/gpu-bundle --part-size 60M --with tests artifacts/engine

The archive holds ``wheels/`` and ``files/``, sorted by name, without times and owners: the same files give the same
parts. The wheels are llmc's own and those that a machine with PyTorch, transformers and CUDA 13 is expected to lack
(:data:`WHEELS`); ``--extra`` adds more. They come without what they depend on.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from rich.console import Console

from llmc.compiler.base.errors import ArtifactError, LlmcError, MissingDependencyError, UsageError
from llmc.runtimes.bundle.gpu_bundle_script import install_script

WHEELS = ("onnxruntime-gpu==1.31.1", "onnx-ir==1.1.0", "gguf==0.19.0", "sentencepiece==0.2.3")
PLATFORMS = ("manylinux_2_34", "manylinux_2_28", "manylinux_2_27", "manylinux_2_17", "manylinux2014")
PART, SUMS, SCRIPT = "bundle.part", "SHA256SUMS", "install.sh"
SOURCES = ("compiler", "passes", "runtimes")
ROOT = Path(__file__).resolve().parents[2]
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
_SMALLEST_PART = 1 << 10


@dataclass(frozen=True)
class Bundle:
    """What was written.

    Attributes:
        directory: Where it is.
        parts: Bytes of each part, by its name, in their order.
        members: Names in the archive.
    """

    directory: Path
    parts: dict[str, int]
    members: tuple[str, ...]


class PartWriter:
    """A file for writing that is cut into parts of at most ``size`` bytes; :attr:`sums` has the SHA-256 of each."""

    def __init__(self, directory: Path, size: int) -> None:
        """Write ``bundle.part00`` and so on into ``directory``."""
        self.sums: dict[str, str] = {}
        self._directory, self._size = directory, size
        self._file: BinaryIO | None = None
        self._hash = hashlib.sha256()
        self._room = 0

    def write(self, data: bytes) -> int:
        """Append; a new part begins where the last one is full."""
        view = memoryview(data)
        while view:
            file = self._file if self._file is not None and self._room else self._next()
            piece, view = view[: self._room], view[self._room :]
            file.write(piece)
            self._hash.update(piece)
            self._room -= len(piece)
        return len(data)

    def _next(self) -> BinaryIO:
        self.close()
        self._room = self._size
        self._file = (self._directory / f"{PART}{len(self.sums):02d}").open("wb")
        return self._file

    def close(self) -> None:
        """End the part that is being written."""
        if self._file is not None:
            self._file.close()
            self.sums[Path(self._file.name).name] = self._hash.hexdigest()
        self._file, self._hash, self._room = None, hashlib.sha256(), 0


def write_bundle(
    wheels: Sequence[Path], files: Sequence[Path], output: Path, *, part_size: int, python: str
) -> Bundle:
    """Pack wheels and further files.

    Args:
        wheels: Wheel files; they go to ``wheels/``.
        files: Files and folders; they go to ``files/`` under their own names, symbolic links as what they point to.
        output: The folder; a bundle that is there is replaced, anything else is not.
        part_size: Most bytes of a part.
        python: Version that the wheels are for, as ``3.12``.

    Raises:
        UsageError: two of ``files`` have one name, one is missing, or parts are too small.
        ArtifactError: ``output`` holds something else.
    """
    if part_size < _SMALLEST_PART:
        raise UsageError(f"parts of {part_size} bytes are too many; give --part-size at least 1K")
    members = dict(sorted([*_members("wheels", wheels), *_members("files", files)]))
    _clear(output)
    writer = PartWriter(output, part_size)
    with tarfile.open(fileobj=cast("BinaryIO", writer), mode="w|", format=tarfile.GNU_FORMAT) as archive:
        for name, path in members.items():
            with path.open("rb") as content:
                archive.addfile(_entry(name, path), content)
    writer.close()
    (output / SCRIPT).write_text(install_script(python), encoding="utf-8")
    # Last: a folder with sums has everything that they name.
    (output / SUMS).write_text("".join(f"{digest}  {name}\n" for name, digest in writer.sums.items()))
    parts = {name: (output / name).stat().st_size for name in writer.sums}
    return Bundle(output, parts, tuple(members))


def _members(folder: str, paths: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Name in the archive and file, for every file of ``paths`` and below them; no bytecode."""
    seen: set[str] = set()
    for given in paths:
        path = given.resolve()
        if not path.exists():
            raise UsageError(f"{given} does not exist, so it cannot be taken along")
        if path.name in seen:
            raise UsageError(f"two of the files to take along are called {path.name}; rename one")
        seen.add(path.name)
        found = [path] if path.is_file() else [each for each in path.rglob("*") if each.is_file()]
        for each in found:
            if "__pycache__" not in each.parts:
                yield f"{folder}/{each.relative_to(path.parent).as_posix()}", each


def _entry(name: str, path: Path) -> tarfile.TarInfo:
    """A header without times and owners."""
    entry = tarfile.TarInfo(name)
    status = path.stat()
    entry.size, entry.mode = status.st_size, 0o755 if status.st_mode & 0o100 else 0o644
    return entry


def _clear(output: Path) -> None:
    """An empty folder; of what is there, only a bundle is removed."""
    output.mkdir(parents=True, exist_ok=True)
    ours = [path for path in output.iterdir() if path.name.startswith(PART) or path.name in (SUMS, SCRIPT)]
    others = sorted(path.name for path in output.iterdir() if path not in ours)
    if others:
        raise ArtifactError(f"{output} holds {others[0]}, which is no part of a bundle; give a folder of its own")
    for path in ours:
        path.unlink()


def build_own_wheel(destination: Path, root: Path = ROOT) -> Path:
    """Build llmc's wheel from a copy of the checkout, so that nothing that lies there (``build/``) gets into it.

    Raises:
        UsageError: this llmc does not run from a checkout.
        ArtifactError: the build failed.
    """
    if not (root / "pyproject.toml").is_file():
        raise UsageError(f"{root} is no checkout of llmc; run this from one")
    _require_build()
    with tempfile.TemporaryDirectory(prefix="llmc-wheel-") as scratch:
        source = Path(scratch, "source")
        source.mkdir()
        for name in SOURCES:
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        for path in root.iterdir():
            if path.is_file():
                shutil.copy(path, source)
        # 1980: the first year that a zip archive knows.
        environment = {**os.environ, "SOURCE_DATE_EPOCH": "315532800"}
        command = ("-m", "build", "--wheel", "--no-isolation", "--outdir", str(destination), str(source))
        _run(command, "llmc's wheel cannot be built", environment)
    return next(destination.glob("llmc_toolchain-*.whl"))


def download_wheels(requirements: Sequence[str], python: str, destination: Path) -> None:
    """Fetch wheels for a Python version on Linux x86-64 with pip, without what they depend on.

    Raises:
        ArtifactError: pip finds no such wheel.
    """
    platforms = [part for name in PLATFORMS for part in ("--platform", f"{name}_x86_64")]
    target = ("--python-version", python, "--implementation", "cp", *platforms)
    command = (
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary=:all:",
        *target,
        "-d",
        str(destination),
    )
    for requirement in requirements:
        _run((*command, requirement), f"no wheel of {requirement} for Python {python} can be had")


def requirements_with(extras: Sequence[str], base: Sequence[str] = WHEELS) -> tuple[str, ...]:
    """The wheels to fetch: of a package that is named twice, the version that was named last."""
    chosen: dict[str, str] = {}
    for requirement in (*base, *extras):
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)==([A-Za-z0-9.+!]+)", requirement)
        if match is None:
            raise UsageError(f"--extra {requirement} names no version; write it as NAME==VERSION")
        chosen[re.sub(r"[-_.]+", "-", match[1]).lower()] = requirement
    return tuple(chosen.values())


def parse_size(text: str) -> int:
    """``60M`` -> 62914560; K, M and G are powers of 1024."""
    match = re.fullmatch(r"(\d+)([KMG]?)", text.strip().upper())
    if match is None or not int(match[1]):
        raise UsageError(f"--part-size {text!r} is no size; write it as 60M")
    return int(match[1]) * _UNITS[match[2]]


def _run(arguments: Sequence[str], failure: str, environment: dict[str, str] | None = None) -> None:
    """Run this Python; a failure ends in one sentence with the last line that it said."""
    done = subprocess.run(
        [sys.executable, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    if done.returncode:
        lines = [line for line in done.stdout.splitlines() if line.strip()]
        raise ArtifactError(f"{failure}: {lines[-1].strip() if lines else f'exit code {done.returncode}'}")


def _require_build() -> None:
    from importlib.util import find_spec

    missing = [name for name in ("build", "setuptools") if find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"{missing[0]} is not installed, which builds the wheel; run 'make setup'")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.bundle.gpu_bundle", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("-o", "--output", type=Path, required=True, help="folder to write")
    parser.add_argument("--part-size", default="60M", help="most bytes of a part, as 60M (default) or 1G")
    parser.add_argument("--python", default="3.12", help="version of the machine's Python (default: 3.12)")
    parser.add_argument("--with", dest="files", type=Path, nargs="+", action="extend", default=[], metavar="PATH")
    parser.add_argument("--extra", action="append", default=[], metavar="NAME==V", help="one more wheel; repeatable")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (an :class:`LlmcError`'s own code when one is raised)."""
    options: Any = _parser().parse_args(arguments)
    console = Console(markup=False, highlight=False, soft_wrap=True)
    try:
        part_size, requirements = parse_size(options.part_size), requirements_with(options.extra)
        if not re.fullmatch(r"3\.\d+", options.python):
            raise UsageError(f"--python {options.python!r} is no version; write it as 3.12")
        list(_members("files", options.files))  # refused before minutes go into wheels
        with tempfile.TemporaryDirectory(prefix="llmc-bundle-") as scratch:
            console.print("building llmc's wheel …")
            build_own_wheel(Path(scratch))
            console.print(f"fetching {', '.join(requirements)} …")
            download_wheels(requirements, options.python, Path(scratch))
            wheels = sorted(Path(scratch).glob("*.whl"))
            bundle = write_bundle(wheels, options.files, options.output, part_size=part_size, python=options.python)
    except LlmcError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    total = sum(bundle.parts.values())
    console.print(f"{bundle.directory}: {len(bundle.parts)} parts, {total / 1e6:.1f} MB, {len(bundle.members)} files")
    console.print(f"copy the folder to the GPU machine and run: sh {SCRIPT} [PREFIX]")
    return 0


if __name__ == "__main__":
    sys.exit(main())
