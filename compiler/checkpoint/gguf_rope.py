"""How a GGUF file rotates queries and keys, as transformers' ``rope_parameters``.

In: a file's metadata, and the tensors that scale single frequencies (``rope_freqs.weight``, ``rope_factors_long`` and
``rope_factors_short``). Out: the same rotation in the words of a configuration, so that the exported graph, the
reference model and the written ``config.json`` all have it; and the frequencies by llama.cpp's formula, with which a
model's own are compared.

    angle of pair i = position * base^(-2i / dims) / factor_i * (1 / factor, or YaRN's mixture of that and 1)

Source: llama.cpp, src/llama-model.cpp (keys), src/llama-context.cpp (magnitude), ggml's ``rope_yarn``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.base.errors import CheckpointError, UnsupportedModelError
from llmc.compiler.checkpoint.gguf_keys import GgufKeys
from llmc.compiler.checkpoint.gguf_rows import read_gguf_rows

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

DEFAULT_BASE = 10000.0
FULL, SLIDING = "full_attention", "sliding_attention"
"""Kinds of layers that may rotate differently."""
_FACTORS = "rope_freqs.weight"
_LONG, _SHORT = "rope_factors_long.weight", "rope_factors_short.weight"
_KINDS = ("none", "linear", "yarn", "longrope")
# By how much a factor of a file may miss Llama 3's formula: both were rounded to float32, after other operations.
_FACTOR_ERROR = 1e-5
# How far a model's frequencies may be from the file's: float32 powers differ by as much between libraries.
_FREQUENCY_ERROR = 1e-4
# Llama 3.1 and later: by how much long waves are stretched, and the ends of what is stretched in part.
_LLAMA3_FACTORS = (8.0, 32.0, 4.0, 16.0, 2.0)
_LLAMA3_ENDS = (1.0, 4.0)
_LLAMA3_CONTEXT = 8192

Frequencies = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Rotation:
    """How the layers with full attention rotate.

    Attributes:
        base: Of the frequencies' powers.
        kind: ``none``, ``linear``, ``yarn`` or ``longrope``, as a file names them.
        factor: Positions are divided by it, in YaRN those of long waves.
        original: Context before it was stretched.
        magnitude: Cosine and sine are multiplied by it.
        ends: YaRN's rotations within the original context from which on, and up to which, a wave is stretched.
        short: A factor for each frequency up to ``original`` tokens, [dims / 2], or None.
        long: The same beyond.
    """

    base: float
    kind: str = "none"
    factor: float = 1.0
    original: int = 0
    magnitude: float = 1.0
    ends: tuple[float, float] = (32.0, 1.0)
    short: tuple[float, ...] | None = None
    long: tuple[float, ...] | None = None

    def parameters(self, context: int) -> dict[str, Any]:
        """As transformers states it.

        Args:
            context: Longest text that the model is made for.
        """
        if self.short is not None and self.short == self.long:
            return self._by_factors(self.short, context)
        if self.short is not None and self.long is not None:
            return self._longrope(self.short, self.long, self.original)
        if self.kind == "yarn":
            fast, slow = self.ends
            scaling = {"beta_fast": fast, "beta_slow": slow, "attention_factor": self.magnitude}
            stretched = {"factor": self.factor, "original_max_position_embeddings": self.original}
            return {"rope_type": "yarn", "rope_theta": self.base, **stretched, **scaling}
        if self.factor != 1:
            return {"rope_type": "linear", "rope_theta": self.base, "factor": self.factor}
        return {"rope_type": "default", "rope_theta": self.base}

    def _by_factors(self, factors: tuple[float, ...], context: int) -> dict[str, Any]:
        """Of factors that do not depend on the length: Llama 3's formula, or else the factors themselves."""
        if self.magnitude == 1:
            if len(set(factors)) == 1:
                return Rotation(self.base, "linear", factors[0]).parameters(context)
            for factor in dict.fromkeys((max(factors), *_LLAMA3_FACTORS)):
                if np.allclose(factors, _llama3_factors(self.base, len(factors), factor), rtol=_FACTOR_ERROR, atol=0):
                    low, high = _LLAMA3_ENDS
                    ends = {"low_freq_factor": low, "high_freq_factor": high}
                    stretched = {"factor": factor, "original_max_position_embeddings": _LLAMA3_CONTEXT}
                    return {"rope_type": "llama3", "rope_theta": self.base, **stretched, **ends}
        return self._longrope(factors, factors, context)

    def _longrope(self, short: tuple[float, ...], long: tuple[float, ...], original: int) -> dict[str, Any]:
        return {
            "rope_type": "longrope",
            "rope_theta": self.base,
            "short_factor": list(short),
            "long_factor": list(long),
            "original_max_position_embeddings": original,
            "attention_factor": self.magnitude,
        }

    def frequencies(self, dims: int, *, whole_ends: bool = True) -> Frequencies:
        """Radians by which each of ``dims / 2`` pairs turns from one position to the next, in short texts.

        Args:
            dims: Channels that are rotated.
            whole_ends: YaRN's ends are whole numbers of pairs.
        """
        pairs = np.arange(dims // 2)
        plain = self.base ** (-2.0 * pairs / dims)
        if self.short is not None:
            return np.asarray(plain / np.asarray(self.short))
        if self.kind != "yarn":
            return np.asarray(plain / self.factor)
        low, high = (
            dims * math.log(self.original / (end * 2 * math.pi)) / (2 * math.log(self.base)) for end in self.ends
        )
        low, high = (math.floor(low), math.ceil(high)) if whole_ends else (low, high)
        first, last = max(0, low), min(dims - 1, high)
        kept = 1 - np.clip((pairs - first) / max(0.001, last - first), 0, 1)
        return np.asarray(plain / self.factor * (1 - kept) + plain * kept)


def _llama3_factors(base: float, count: int, factor: float) -> Frequencies:
    """Source: llama.cpp's conversion/llama.py, and transformers' ``_compute_llama3_parameters``."""
    waves = 2 * math.pi * base ** (np.arange(count) / count)
    low, high = _LLAMA3_ENDS
    part = np.clip((_LLAMA3_CONTEXT / waves - low) / (high - low), 0, 1)
    return np.asarray(1 / ((1 - part) / factor + part))


def read_rotation(keys: GgufKeys) -> Rotation:
    """What the file says.

    Raises:
        CheckpointError: a key or tensor that cannot be, or one of two that belong together.
        UnsupportedModelError: a scaling that no configuration of transformers says.
    """
    path = keys.header.path
    kind = keys.text("rope.scaling.type", "linear")
    if kind not in _KINDS:
        raise UnsupportedModelError(
            f"{path} scales its rotary frequencies in the way {kind} (rope.scaling.type), which llmc does not know; "
            "use the model's safetensors checkpoint."
        )
    # Zero stands for one, as in llama.cpp, which also wrote the key under another name.
    factor = keys.real("rope.scaling.factor", keys.real("rope.scale_linear", 1.0)) or 1.0
    base = keys.real("rope.freq_base", DEFAULT_BASE)
    if factor <= 0 or base <= 0:
        raise CheckpointError(
            f"{path} states a rotary base of {base:g} and a factor of {factor:g}; convert the model to GGUF again."
        )
    _refuse_others(keys)
    original = keys.count("rope.scaling.original_context_length", 0) or keys.count("context_length", 0)
    if original == 0 and kind in ("yarn", "longrope"):
        raise CheckpointError(f"{path} scales its rotary frequencies and lacks context_length; convert it again.")
    magnitude = keys.real("rope.scaling.attn_factor", 1.0)
    short, long = _factors(keys, factor if kind == "linear" else 1.0)
    if short is not None:
        return Rotation(base, "longrope", 1.0, original, magnitude, short=short, long=long)
    if kind == "longrope":
        raise CheckpointError(
            f"{path} says longrope and lacks {_LONG} and {_SHORT}; convert the model to GGUF again."
        )
    if kind == "yarn" and factor != 1:
        ends = (keys.real("rope.scaling.yarn_beta_fast", 32.0), keys.real("rope.scaling.yarn_beta_slow", 1.0))
        return Rotation(base, "yarn", factor, original, magnitude * _yarn_magnitude(keys, factor), ends)
    if magnitude != 1:
        raise UnsupportedModelError(
            f"{path} makes rotated queries and keys larger by {magnitude:g} (rope.scaling.attn_factor) without other "
            "factors, which llmc does not read; use the model's safetensors checkpoint."
        )
    return Rotation(base, "linear", factor, original) if kind == "linear" else Rotation(base)


def _yarn_magnitude(keys: GgufKeys, factor: float) -> float:
    def grown(scale: float) -> float:
        return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0

    # The converter writes what the model's configuration calls attention_factor: the magnitude itself.
    if (stated := keys.real("rope.scaling.yarn_attn_factor", 0.0)) > 0:
        return stated
    scale = keys.real("rope.scaling.yarn_log_multiplier", 0.0)
    return grown(1.0) / grown(scale) if scale else grown(1.0)


def _refuse_others(keys: GgufKeys) -> None:
    """What changes a rotation and has no place in :class:`Rotation`."""
    neutral = {"rope.scaling.alpha": (0.0,), "rope.scaling.yarn_ext_factor": (1.0, -1.0)}
    for name, values in neutral.items():
        if (value := keys.real(name, values[0])) not in values:
            raise UnsupportedModelError(
                f"{keys.header.path} scales its rotary frequencies with {name} = {value:g}, which llmc does not "
                "read; use the model's safetensors checkpoint."
            )


def _factors(keys: GgufKeys, scale: float) -> tuple[tuple[float, ...] | None, tuple[float, ...] | None]:
    """Factors of short and of long texts, times ``scale``."""
    one = keys.header.tensor(_FACTORS)
    names = (_SHORT, _LONG) if one is None else (_FACTORS, _FACTORS)
    tensors = [keys.header.tensor(name) for name in names]
    present = [tensor for tensor in tensors if tensor is not None]
    if not present:
        return None, None
    if len(present) < 2:
        raise CheckpointError(
            f"{keys.header.path} has {present[0].name} and not {_SHORT if present[0].name == _LONG else _LONG}; "
            "convert the model to GGUF again."
        )
    values = [np.asarray(read_gguf_rows(tensor).reshape(-1) * np.float32(scale)) for tensor in present]
    for tensor, factors in zip(present, values, strict=True):
        if not np.isfinite(factors).all() or not (factors > 0).all() or len(factors) != len(values[0]):
            raise CheckpointError(
                f"{tensor.name} in {keys.header.path} holds factors that cannot be (not finite, not positive, or too "
                "few); fetch the file again."
            )
    short, long = (tuple(map(float, factors)) for factors in values)
    return short, long


def apply_rotation(config: PreTrainedConfig, keys: GgufKeys, dims: int) -> None:
    """Give ``config`` the file's rotation; one without rotary embedding stays as it is.

    Where kinds of layers rotate differently, windows keep plain frequencies (as llama.cpp has it for Gemma 3).

    Args:
        config: Of the model.
        keys: Of the file.
        dims: Channels of a head that are rotated.

    Raises:
        CheckpointError, UnsupportedModelError: see :func:`read_rotation`.
    """
    stated = getattr(config, "rope_parameters", None)
    if not stated:
        return
    rotation = read_rotation(keys)
    if rotation.short is not None and len(rotation.short) != dims // 2:
        raise CheckpointError(
            f"{keys.header.path} has {len(rotation.short)} factors for the frequencies of {dims} rotated channels, "
            f"{dims // 2} belong there; convert the model to GGUF again."
        )
    parameters = rotation.parameters(keys.count("context_length", 0))
    if SLIDING in stated:
        sliding = keys.real("rope.freq_base_swa", stated[SLIDING]["rope_theta"])
        # Gemma 4 states the share of the channels, and its files the same as factors.
        full = stated[FULL] if stated[FULL].get("rope_type") == "proportional" else parameters
        stated = {
            **stated,
            SLIDING: {**stated[SLIDING], "rope_theta": sliding},
            FULL: {**full, "rope_theta": rotation.base},
        }
    else:
        partial = {key: stated[key] for key in ("partial_rotary_factor", "truncate") if key in stated}
        if parameters["rope_type"] != "yarn":
            partial.pop("truncate", None)
        stated = {**parameters, **partial}
    config.rope_parameters = stated
    if hasattr(config, "original_max_position_embeddings") and rotation.original:
        config.original_max_position_embeddings = rotation.original


def check_rotation(model: Any, keys: GgufKeys, dims: int) -> None:
    """Compare the frequencies of a model's rotary modules with the file's.

    Args:
        model: transformers' model, perhaps without storage: its modules are built anew from their configuration.
        keys: Of the file.
        dims: Channels of a head that are rotated.

    Raises:
        UnsupportedModelError: they differ, so that transformers' model is not the file's.
    """
    rotation = read_rotation(keys)
    for module in model.modules():
        buffers = [name for name in getattr(module, "_buffers", {}) if name in ("inv_freq", f"{FULL}_inv_freq")]
        if not buffers or not hasattr(module, "config"):
            continue
        rebuilt = type(module)(module.config)
        own = getattr(rebuilt, buffers[0]).double().numpy()
        magnitude = getattr(rebuilt, buffers[0].replace("inv_freq", "attention_scaling"), 1.0)
        whole_ends = (getattr(module.config, "rope_parameters", None) or {}).get("truncate", True)
        expected = rotation.frequencies(dims, whole_ends=whole_ends)
        same = own.shape == expected.shape and np.allclose(own, expected, rtol=_FREQUENCY_ERROR, atol=1e-12)
        if not same or not math.isclose(magnitude, rotation.magnitude, rel_tol=_FREQUENCY_ERROR):
            raise UnsupportedModelError(
                f"{keys.header.path} rotates {dims} channels of a head from base {rotation.base:g} on "
                f"({rotation.kind}), and transformers' {keys.header.architecture} does it otherwise; use the model's "
                "safetensors checkpoint."
            )
