"""Environments on the disk: made whole or not at all, from the registry that the user's pip has.

In: an :class:`~.environments.Environment` and a root folder. Out: :class:`Installation`::

    ROOT/environments/NAME-KEY/            whole: it got its name last
                      NAME-KEY/bin/python  the interpreter
                      NAME-KEY/peer.json   what is in it
    ROOT/environments/.NAME-KEY.….partial  being made, or left by a killed process and cleared away by the next one

KEY changes with the versions, so that an environment of other versions is never taken for this one.
"""

from __future__ import annotations

import contextlib
import json
import logging
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from llmc.compiler.artifact.staging import Staging, remove_stale
from llmc.compiler.base.errors import MachineError, MissingDependencyError
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.base.user_cache import user_cache
from llmc.runtimes.bench.peers.environments import MIB, Environment

log = logging.getLogger(__name__)

RECORD = "peer.json"
CPU_TORCH_INDEX = "https://download.pytorch.org/whl/cpu"
SOURCE_FOLDER = "source"
"""In an environment: the source of what was built there, as far as its converter needs it."""
CONVERTER_PARTS = ("convert_hf_to_gguf.py", "conversion/", "gguf-py/gguf/")
SPARE_BYTES = 512 * MIB
TAIL_LINES = 12


@dataclass(frozen=True)
class Installation:
    """A whole environment.

    Attributes:
        directory: Where it is.
        versions: Package's name -> version, of all packages.
        disk_bytes: All files.
    """

    environment: Environment
    directory: Path
    versions: dict[str, str]
    disk_bytes: int

    @property
    def python(self) -> Path:
        """The interpreter."""
        return self.directory / "bin" / "python"

    @property
    def version(self) -> str:
        """Of the peer itself."""
        package = self.environment.source or self.environment.packages[0]
        return self.versions.get(package, "unknown")


@dataclass(frozen=True)
class PeerState:
    """A peer, and what is installed of it: None for nothing."""

    environment: Environment
    installation: Installation | None

    def to_json(self) -> dict[str, object]:
        """Plain values for ``json.dump``."""
        present = self.installation
        return {
            "name": self.environment.name,
            "installed": present is not None,
            "python": None if present is None else str(present.python),
            "versions": {} if present is None else present.versions,
            "disk_bytes": None if present is None else present.disk_bytes,
            "expected_bytes": self.environment.installed_bytes,
            "types": list(self.environment.types),
        }


def peers_root(root: Path | None = None) -> Path:
    """The folder with environments and models; None: in the user's cache."""
    return user_cache("peers") if root is None else root.absolute()


def find_installation(environment: Environment, root: Path) -> Installation | None:
    """The environment with the versions of today, if it is there."""
    directory = environment_directory(environment, root)
    if not (directory / RECORD).is_file():
        return None
    record = json.loads((directory / RECORD).read_text())
    return Installation(environment, directory, record["versions"], record["disk_bytes"])


def environment_directory(environment: Environment, root: Path) -> Path:
    """Where a whole environment has its place."""
    return root / "environments" / f"{environment.name}-{environment.key}"


def require_installed(environments: Sequence[Environment], root: Path, *, told: bool) -> dict[str, Installation]:
    """All of these, by name; ``told``: ``root`` is not where they are by default.

    Raises:
        MissingDependencyError: some are not there; the command that installs them.
    """
    present = {each.name: find_installation(each, root) for each in environments}
    missing = [each for each in environments if present[each.name] is None]
    if missing:
        names = [each.name for each in missing]
        size = sum(each.installed_bytes for each in missing)
        where = f" --peers-dir {root}" if told else ""
        raise MissingDependencyError(
            f"{', '.join(names)}: not installed; llmc bench --install-peers {','.join(names)}{where} makes "
            f"{'an environment' if len(names) == 1 else 'environments'} of about {megabytes(size)}"
        )
    return {name: each for name, each in present.items() if each is not None}


def install_peers(
    environments: Sequence[Environment], root: Path, progress: Progress = NO_PROGRESS
) -> list[Installation]:
    """Make the environments that are not there yet.

    Raises:
        MachineError: too little room on the disk, or a folder that cannot be written.
        MissingDependencyError: pip cannot install something, or what it installed cannot be imported.
    """
    missing = [each for each in environments if find_installation(each, root) is None]
    _check_room(missing, root)
    for each in missing:
        _install(each, root, progress)
    return list(require_installed(environments, root, told=False).values())


def _check_room(environments: Sequence[Environment], root: Path) -> None:
    if not environments:
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
    except OSError as error:
        raise MachineError(f"{root} cannot be written: {error.strerror}") from error
    needed = sum(each.installed_bytes for each in environments) + SPARE_BYTES
    if free < needed:
        names = ", ".join(each.name for each in environments)
        raise MachineError(
            f"{names}: about {megabytes(needed)} are needed in {root}, {megabytes(free)} are free; install fewer at "
            "a time, or elsewhere with --peers-dir"
        )


def _install(environment: Environment, root: Path, progress: Progress) -> None:
    with whole_folder(environment_directory(environment, root)) as folder:
        _fill(environment, folder, progress)
        progress.start(f"{environment.name}: writing to the disk")


@contextlib.contextmanager
def whole_folder(directory: Path) -> Iterator[Path]:
    """A folder that gets its name, in place of an older one, at the end of the block; after an error there is none.

    Raises:
        MachineError: it cannot be written.
    """
    try:
        directory.parent.mkdir(parents=True, exist_ok=True)
        remove_stale(directory)
        staging = Staging(directory)
    except OSError as error:
        raise MachineError(f"{directory.parent} cannot be written: {error.strerror}") from error
    try:
        yield staging.path
        staging.publish(replace=True)
    finally:
        staging.close()


def _fill(environment: Environment, directory: Path, progress: Progress) -> None:
    """Everything of an environment, in a folder that has not its name yet."""
    name, python = environment.name, directory / "bin" / "python"
    size = megabytes(environment.download_bytes)
    progress.start(f"{name}: an empty environment")
    _run(f"{name}: venv", [sys.executable, "-I", "-m", "venv", str(directory)])
    if environment.torch is not None:
        progress.start(f"{name}: torch {environment.torch} for processors")
        _install_torch(name, python, environment)
    if environment.source is not None:
        progress.start(f"{name}: building {environment.source} (minutes)")
        _build(environment, python, directory)
    progress.start(f"{name}: packages (about {size})")
    _pip(name, python, "install", "--constraint", str(environment.lock), *environment.packages)
    if environment.unwanted:
        _pip(name, python, "uninstall", "--yes", *environment.unwanted)
    progress.start(f"{name}: a first import")
    _run(
        f"{name}: a first import",
        [str(python), "-I", "-c", "".join(f"import {module}\n" for module in environment.modules)],
    )
    shown = json.loads(_pip(name, python, "list", "--format=json"))
    files = [path.lstat().st_size for path in directory.rglob("*") if not path.is_dir()]
    record = {
        "versions": {each["name"].lower().replace("_", "-"): each["version"] for each in shown},
        "disk_bytes": sum(files),
    }
    (directory / RECORD).write_text(json.dumps({"name": name, "key": environment.key, **record}, indent=2) + "\n")


def _install_torch(name: str, python: Path, environment: Environment) -> None:
    """The wheel without CUDA's libraries: from the user's index, where it has that build, else from PyTorch's."""
    wanted = f"torch=={environment.torch}+cpu"
    common = ("install", "--constraint", str(environment.lock), wanted)
    try:
        _pip(name, python, *common)
    except MissingDependencyError:
        log.info("%s is not in pip's index; asking %s", wanted, CPU_TORCH_INDEX)
        _pip(name, python, *common, "--extra-index-url", CPU_TORCH_INDEX)


def _build(environment: Environment, python: Path, directory: Path) -> None:
    """Build a package from its source, and keep of that what its converter needs."""
    locked = environment.lock.read_text().splitlines()
    wanted = next(line for line in locked if line.startswith(f"{environment.source}=="))
    downloads = directory / "download"
    arguments = ("--no-deps", "--no-binary", str(environment.source), "--dest", str(downloads))
    _pip(environment.name, python, "download", *arguments, wanted)
    (archive,) = downloads.glob("*.tar.gz")
    with tarfile.open(archive) as source:
        source.extractall(directory / SOURCE_FOLDER, _converter_parts(source), filter="data")
    _pip(environment.name, python, "install", "--constraint", str(environment.lock), str(archive))
    shutil.rmtree(downloads)


def _converter_parts(source: tarfile.TarFile) -> list[tarfile.TarInfo]:
    """Of llama-cpp-python's source: llama.cpp's converter, its modules, and the gguf package that fits them."""
    found = []
    for member in source.getmembers():
        _, _, inside = member.name.partition("/vendor/llama.cpp/")
        if inside.startswith(CONVERTER_PARTS):
            member.name = inside
            found.append(member)
    return found


def _pip(name: str, python: Path, *arguments: str) -> str:
    command = [str(python), "-I", "-m", "pip", "--disable-pip-version-check", "--no-input", *arguments]
    return _run(f"{name}: pip {arguments[0]}", command)


def _run(what: str, command: Sequence[str]) -> str:
    """Run a command; its output.

    Raises:
        MissingDependencyError: it failed; the end of what it wrote.
    """
    log.info("%s: %s", what, " ".join(command))
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        tail = "\n".join((done.stdout + done.stderr).strip().splitlines()[-TAIL_LINES:])
        raise MissingDependencyError(f"{what} failed (status {done.returncode})\n{tail}")
    return done.stdout


def megabytes(size: int) -> str:
    """A size for people: ``420 MB``, ``1.5 GB``."""
    return f"{size / 1e9:.1f} GB" if size >= 1_000_000_000 else f"{size / 1e6:.0f} MB"
