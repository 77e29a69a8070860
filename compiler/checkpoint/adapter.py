"""An adapter of PEFT: low-rank updates, and tensors that replace those of the model.

In: a directory with ``adapter_config.json`` and ``adapter_model.safetensors``.
Out: :class:`Adapter`, which says for each module of the model what is done to it.

Source of names and settings: PEFT's ``tuners/lora/config.py`` and ``utils/save_and_load.py``. What changes the
arithmetic and is not known here is refused.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError, UsageError
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights
from llmc.compiler.checkpoint.side_files import ADAPTER_CONFIG, is_adapter

ADAPTER_WEIGHTS = "adapter_model.safetensors"
_PREFIX = "base_model.model."
# Settings that change what is computed beside those that are read below: only their default can be merged.
_REFUSED = (
    "trainable_token_indices",
    "target_parameters",
    "layer_replication",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "monteclora_config",
    "velora_config",
)
# Ways to begin a training that subtract something from the weights of the base, which are then not the base's own.
_MOVED_BASE = re.compile(r"pissa|olora|corda|loftq|lora_ga", re.IGNORECASE)
_PARTS = (
    (re.compile(r"\.lora_A(\.\w+)?\.weight$"), "a"),
    (re.compile(r"\.lora_B(\.\w+)?\.weight$"), "b"),
    (re.compile(r"\.lora_B(\.\w+)?\.bias$"), "bias_step"),
    (re.compile(r"\.lora_embedding_A(\.\w+)?$"), "table_a"),
    (re.compile(r"\.lora_embedding_B(\.\w+)?$"), "table_b"),
    (re.compile(r"\.lora_magnitude_vector(\.\w+)?(\.weight)?$"), "magnitude"),
    (re.compile(r"\.(base_layer|modules_to_save(\.\w+)?)\.weight$"), "weight"),
    (re.compile(r"\.(base_layer|modules_to_save(\.\w+)?)\.bias$"), "bias"),
    (re.compile(r"\.weight$"), "weight"),
    (re.compile(r"\.bias$"), "bias"),
)


@dataclass(frozen=True)
class Adapter:
    """An opened adapter; its tensors are still in their file.

    Attributes:
        name: Last part of its directory's path.
        directory: Where it is.
        scale: What its updates are multiplied with beside its own scaling.
        base: The model that it says it was trained on; None: it does not say.
        weights: Its tensors.
        modules: Path of a module in the model -> what is done to it: kinds of parts to names of tensors. Parts are
            ``a`` [rank, in] and ``b`` [out, rank] of a linear layer, ``table_a`` [rank, rows] and ``table_b``
            [width, rank] of an embedding, ``magnitude`` [out], ``bias_step`` [out], and ``weight`` and ``bias``,
            which take the place of the model's.
        settings: ``adapter_config.json``.
    """

    name: str
    directory: Path
    scale: float
    base: str | None
    weights: SafetensorsWeights
    modules: Mapping[str, Mapping[str, str]]
    settings: Mapping[str, Any]

    def files(self) -> tuple[Path, ...]:
        """What it is read from."""
        return (self.directory / ADAPTER_CONFIG, *self.weights.files)

    def scaling(self, module: str, rank: int) -> float:
        """What the product of the two matrices of ``module`` is multiplied with; its rank is that of its matrices."""
        alpha = float(self.settings.get("lora_alpha", 8))
        for pattern, stated in (self.settings.get("alpha_pattern") or {}).items():
            if re.match(rf"(.*\.)?({pattern})$", module):
                alpha = float(stated)
                break
        return self.scale * alpha / (math.sqrt(rank) if self.settings.get("use_rslora") else rank)


def parse_adapter(text: str) -> tuple[str, float]:
    """``DIR`` or ``DIR:SCALE`` as directory and scale.

    Raises:
        UsageError: the scale is no finite number.
    """
    directory, colon, scale = text.rpartition(":")
    if not colon or Path(text).exists():
        return text, 1.0
    try:
        number = float(scale)
    except ValueError:
        return text, 1.0
    if not math.isfinite(number):
        raise UsageError(f"--adapter {text}: {scale} is no scale; give a number, as DIR:0.5")
    return directory, number


def open_adapter(directory: Path, scale: float = 1.0) -> Adapter:
    """The adapter in ``directory``.

    Raises:
        CheckpointError: there is none, it is a pickle, or it is damaged.
        UnsupportedModelError: it cannot be merged into weights, or llmc does not know how.
        UsageError: a scale where tensors are replaced.
    """
    if not is_adapter(directory):
        raise CheckpointError(f"{directory} holds no adapter ({ADAPTER_CONFIG}); name the directory that PEFT wrote.")
    settings = _settings(directory / ADAPTER_CONFIG)
    if not (directory / ADAPTER_WEIGHTS).is_file():
        pickled = (directory / "adapter_model.bin").is_file()
        reason = (
            "its tensors only in adapter_model.bin, a pickle, and loading a pickle runs the code inside it"
            if pickled
            else f"no {ADAPTER_WEIGHTS}"
        )
        raise CheckpointError(
            f"{directory} has {reason}; save it again with PEFT (save_pretrained) where you trust its source."
        )
    weights = SafetensorsWeights(directory, single=ADAPTER_WEIGHTS)
    modules = _modules(weights, directory)
    _require_mergeable(settings, modules, directory, scale)
    base = settings.get("base_model_name_or_path")
    name = directory.resolve().name
    return Adapter(name, directory, scale, base if base else None, weights, modules, settings)


def _settings(path: Path) -> dict[str, Any]:
    raw = read_json_object(path)
    if str(raw.get("peft_type", "")).upper() != "LORA":
        raise UnsupportedModelError(
            f"{path.parent} is an adapter of the kind {raw.get('peft_type')}, and llmc merges LORA (DoRA with it); "
            "merge it with PEFT (merge_and_unload) where it can be merged, and name the model that comes out."
        )
    return raw


def _modules(weights: SafetensorsWeights, directory: Path) -> dict[str, dict[str, str]]:
    """What is done to each module."""
    modules: dict[str, dict[str, str]] = {}
    for tensor in weights.tensors():
        path = tensor.removeprefix(_PREFIX)
        found = next(((match, part) for pattern, part in _PARTS if (match := pattern.search(path))), None)
        if found is None:
            raise UnsupportedModelError(
                f"{tensor} in {directory / ADAPTER_WEIGHTS} is no part of a LoRA that llmc knows; merge the adapter "
                "with PEFT (merge_and_unload), and name the model that comes out."
            )
        match, part = found
        other = modules.setdefault(path[: match.start()], {}).setdefault(part, tensor)
        if other != tensor:
            raise CheckpointError(
                f"{directory / ADAPTER_WEIGHTS} has two tensors for one thing: {other} and {tensor}; save it again."
            )
    for module, parts in modules.items():
        for one, two in (("a", "b"), ("table_a", "table_b")):
            if (one in parts) != (two in parts):
                raise CheckpointError(
                    f"{directory / ADAPTER_WEIGHTS} has one of the two matrices of {module}; fetch it again."
                )
        if ("magnitude" in parts or "bias_step" in parts) and not {"a", "table_a"} & parts.keys():
            raise CheckpointError(f"{directory / ADAPTER_WEIGHTS} has no matrices of {module}; fetch it again.")
    return modules


def _require_mergeable(
    settings: Mapping[str, Any], modules: Mapping[str, Mapping[str, str]], directory: Path, scale: float
) -> None:
    refused = [name for name in _REFUSED if settings.get(name)]
    start = settings.get("init_lora_weights")
    if isinstance(start, str) and _MOVED_BASE.match(start):
        refused.append(f"init_lora_weights: {start}")
    if refused:
        raise UnsupportedModelError(
            f"the adapter in {directory} has {refused[0]}, which llmc does not merge; merge it with PEFT "
            "(merge_and_unload), and name the model that comes out."
        )
    whole = next((parts for parts in modules.values() if {"weight", "bias"} & parts.keys()), None)
    if scale != 1 and whole is not None:
        name = whole.get("weight") or whole["bias"]
        raise UsageError(
            f"the adapter in {directory} replaces whole tensors ({name}), which have no scale; leave :{scale:g} out"
        )
