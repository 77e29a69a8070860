"""A model as it comes: configuration, weights, tokenizer, licence.

In: what a user types: a Hugging Face directory, a ``.gguf`` file, the name of a built-in model, or an id on the
Hugging Face hub. Out: :class:`Checkpoint`, checked as far as is possible without reading the weights.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from llmc.compiler.base.errors import CheckpointError, UsageError
from llmc.compiler.base.lfs_pointer import require_content
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.checkpoint.adapter import Adapter
from llmc.compiler.checkpoint.builtin_models import BUILTIN_MODELS, locate_builtin_model
from llmc.compiler.checkpoint.chat_templates import template_files
from llmc.compiler.checkpoint.content_hashes import content_hashes
from llmc.compiler.checkpoint.gguf_files import find_gguf_model
from llmc.compiler.checkpoint.gguf_weights import GgufWeights
from llmc.compiler.checkpoint.hf_config import (
    read_hf_config,
    read_hf_generation_config,
    read_hf_licence,
    stated_hf_quantization,
)
from llmc.compiler.checkpoint.hf_tokenizer import VOCABULARY_NAMES
from llmc.compiler.checkpoint.hub import HubName, fetch_snapshot
from llmc.compiler.checkpoint.quantized.open_quantized import open_quantized
from llmc.compiler.checkpoint.quantized.quantized_weights import QuantizedWeights
from llmc.compiler.checkpoint.safetensors_weights import INDEX_NAME, SafetensorsWeights
from llmc.compiler.checkpoint.side_files import check_other_weights, require_model
from llmc.compiler.checkpoint.tokenizer_assets import (
    ASSET_NAMES,
    gguf_generation_config,
    strip_quantization,
    write_gguf_assets,
    write_hf_assets,
)

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig

log = logging.getLogger(__name__)
#: Of files that a model is read from; others beside them may be anything.
_READ_SUFFIXES = frozenset({".safetensors", ".gguf", ".json", ".model", ".tiktoken", ".txt", ".jinja"})


@dataclass(frozen=True)
class Checkpoint:
    """An opened checkpoint; the weights are still in their files.

    Attributes:
        name: What the user called it, or the last part of its path.
        path: Directory, or ``.gguf`` file.
        format: Of the weights.
        config: Of the causal language model.
        weights: Its tensors, read row by row (a :class:`~llmc.compiler.checkpoint.weights.WeightSource`).
        generation_config: Token ids and sampling settings that come with the model.
        licence: As the checkpoint states it, or None.
        revision: Branch, tag or commit of the hub that was asked for; None: none was.
        commit: Of the hub's repository, 40 hexadecimal digits; None for what lies elsewhere.
        ignored: Names of tensors, or patterns with ``*``, that the user says are of no use.
        adapters: What is merged into it, in order.
    """

    name: str
    path: Path
    format: Literal["safetensors", "gguf"]
    config: PreTrainedConfig
    weights: SafetensorsWeights | QuantizedWeights | GgufWeights
    generation_config: GenerationConfig
    licence: str | None = None
    revision: str | None = None
    commit: str | None = None
    ignored: tuple[str, ...] = ()
    adapters: tuple[Adapter, ...] = ()

    def files(self) -> tuple[Path, ...]:
        """Every file that the compiled model depends on: weights, index, configuration, tokenizer."""
        if self.format == "gguf":
            return self.weights.files
        names = (INDEX_NAME, *ASSET_NAMES, *VOCABULARY_NAMES, "merges.txt")
        others = dict.fromkeys((*(self.path / name for name in names), *template_files(self.path)))
        return (*self.weights.files, *(path for path in others if path.is_file()))

    def content_hashes(self) -> AbstractContextManager[Future[dict[str, str]]]:
        """SHA-256 of :meth:`files` by file name, sorted, and of :meth:`adapter_files`, made while the block runs.

        The result raises CheckpointError where a file cannot be read.
        """
        return content_hashes(self.files(), self.adapter_files())

    def adapter_files(self) -> dict[str, Path]:
        """The files of the adapters, by names that tell their order and scale."""
        return {
            f"adapters/{number}:{adapter.scale!r}/{path.name}": path
            for number, adapter in enumerate(self.adapters)
            for path in adapter.files()
        }

    def write_assets(self, directory: Path) -> None:
        """Write tokenizer, chat template, generation settings and configuration; see :mod:`.tokenizer_assets`.

        Raises:
            CheckpointError, UnsupportedModelError: the tokenizer is missing or not known.
            ArtifactError: ``directory`` cannot be written.
        """
        if isinstance(self.weights, GgufWeights):
            write_gguf_assets(self.weights.header, directory, self.config, self.generation_config)
        else:
            write_hf_assets(self.path, directory, self.generation_config)
            if isinstance(self.weights, QuantizedWeights):
                strip_quantization(directory)


def open_checkpoint(
    model: str,
    *,
    search_path: Sequence[Path] = (),
    trust_remote_code: bool = False,
    allow_download: bool = True,
    cache_directory: Path | None = None,
    revision: str | None = None,
    progress: Progress = NO_PROGRESS,
) -> Checkpoint:
    """Open the checkpoint that ``model`` names.

    Args:
        model: An existing directory or ``.gguf`` file, else a built-in name, else a hub id, as ``owner/name`` or
            ``owner/name@revision``.
        search_path: Directories with installed packages, where built-in models are looked for first.
        trust_remote_code: Run model code that the checkpoint brings.
        allow_download: Whether a hub id may be fetched.
        cache_directory: Where built-in models that come in pieces are joined; the platform's cache if None.
        revision: Branch, tag or commit of a hub id; None: what stands behind its ``@``, else the newest state.
        progress: Told how far a download is.

    Raises:
        UsageError: a revision of what is not on the hub, or two of them.
        CheckpointError: nothing is there, or it is incomplete or damaged.
        UnsupportedModelError: a model that llmc cannot compile.
        MissingDependencyError: a built-in model or the ``gguf`` package is not installed.
    """
    path = Path(model).expanduser()
    if path.exists() or model in BUILTIN_MODELS:
        if revision is not None:
            raise UsageError(
                f"--revision {revision} is for models of the Hugging Face hub, and {model} is here already"
            )
        return _open_local(model, path, search_path, trust_remote_code, cache_directory)
    name = HubName.parse(model)
    repository, colon, quantization = model.rpartition(":")
    if colon and HubName.parse(repository) is not None and path.suffix not in (".gguf", ".safetensors"):
        raise CheckpointError(
            f"{model} asks for the quantization {quantization} of {repository}, as llama.cpp writes it: fetch that "
            f".gguf file (hf download {repository} --include '*{quantization}*'), and name it."
        )
    if path.suffix in (".gguf", ".safetensors") or name is None:
        raise CheckpointError(
            f"{model} does not exist; name a directory, a .gguf file, a built-in model ({', '.join(BUILTIN_MODELS)}) "
            "or a Hugging Face id."
        )
    if None not in (revision, name.revision) and revision != name.revision:
        raise UsageError(f"{model} names another revision than --revision {revision}; give one of them")
    revision = revision or name.revision
    snapshot = fetch_snapshot(
        name.repository,
        revision=revision,
        allow_download=allow_download,
        with_code=trust_remote_code,
        progress=progress,
    )
    checkpoint = _open_directory(snapshot.directory, name.repository, trust_remote_code)
    return replace(checkpoint, revision=revision, commit=snapshot.commit)


def _open_local(
    model: str, path: Path, search_path: Sequence[Path], trust_remote_code: bool, cache_directory: Path | None
) -> Checkpoint:
    """Open what lies at ``path``, else the built-in ``model``."""
    if path.is_dir():
        return _open_directory(path, path.resolve().name, trust_remote_code)
    if path.exists():
        return _open_file(path, path.stem)
    found = locate_builtin_model(model, search_path=search_path, cache_directory=cache_directory)
    return _open_file(found, model, BUILTIN_MODELS[model].licence)


def _open_directory(path: Path, name: str, trust_remote_code: bool) -> Checkpoint:
    read = (item for item in sorted(path.iterdir()) if item.suffix in _READ_SUFFIXES)
    require_content(read, CheckpointError)
    # transformers reads a directory's GGUF file only where it is named; without other weights it is what is meant.
    others = any(path.glob("*.safetensors*")) or any(path.glob("pytorch_model*.bin"))
    if not others or not (path / "config.json").is_file():
        model = find_gguf_model(path)
        if model is not None:
            return _open_file(model, model.stem)
    require_model(path)
    config = read_hf_config(path, trust_remote_code=trust_remote_code)
    weights, quantization = _stored_weights(path, config), stated_hf_quantization(path)
    check_other_weights(path, weights)
    return Checkpoint(
        name=name,
        path=path,
        format="safetensors",
        config=config,
        weights=weights if quantization is None else open_quantized(quantization, weights),
        generation_config=read_hf_generation_config(path, config),
        licence=read_hf_licence(path),
    )


def _stored_weights(path: Path, config: PreTrainedConfig) -> SafetensorsWeights:
    """The directory's tensors: of the file that the configuration names, else of those of the usual names."""
    named = getattr(config, "transformers_weights", None)
    if named is None:
        return SafetensorsWeights(path)
    plain = isinstance(named, str) and named == Path(named).name and named.endswith(".safetensors")
    if not plain or not (path / named).is_file():
        raise CheckpointError(
            f"config.json of {path} says that the weights are in {named} (transformers_weights), which is no "
            "safetensors file there; correct it."
        )
    return SafetensorsWeights(path, single=named)


def _open_file(path: Path, name: str, licence: str | None = None) -> Checkpoint:
    require_content([path], CheckpointError)
    if path.suffix != ".gguf":
        raise CheckpointError(
            f"{path} is no .gguf file; name the directory of a Hugging Face checkpoint, or a .gguf file."
        )
    weights = GgufWeights(path)
    return Checkpoint(
        name=name,
        path=path,
        format="gguf",
        config=weights.config,
        weights=weights,
        generation_config=gguf_generation_config(weights.header),
        licence=licence or weights.header.metadata.get("general.license"),
    )
