"""In what numbers a checkpoint stores its weights, in a few words.

In: a Hugging Face directory or a ``.gguf`` file.
Out: its quantization as the producer states it, and how many tensors have which type, as ``gptq, 4 bits, group 128;
42 INT32, 23 FLOAT16 tensors`` or ``168 Q4_K, 61 F32, 30 Q6_K tensors``. No weight is read.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.checkpoint.json_file import read_json_object
from llmc.compiler.checkpoint.quantized.open_quantized import stated_settings
from llmc.compiler.checkpoint.safetensors_weights import SafetensorsWeights

_SETTINGS = (
    ("bits", "{} bits"),
    ("w_bit", "{} bits"),
    ("group_size", "group {}"),
    ("q_group_size", "group {}"),
    ("format", "{}"),
    ("quant_algo", "{}"),
    ("fmt", "{}"),
    ("weight_block_size", "blocks of {}"),
    ("bnb_4bit_quant_type", "{}"),
)


def stored_as(path: Path) -> str:
    """What ``path`` stores.

    Raises:
        CheckpointError, UnsupportedModelError: it is damaged, or of no known kind.
        MissingDependencyError: the ``gguf`` package is not installed.
    """
    if path.is_file():
        return _counted(tensor.type_name for tensor in read_gguf_header(path).tensors)
    types = _counted(info.dtype.name for info in SafetensorsWeights(path).tensors().values())
    stated = stated_settings(path, read_json_object(path / "config.json"))
    if stated is None:
        return types
    settings, method, _ = stated
    return f"{_words({'quant_method': method} | (settings if isinstance(settings, dict) else {}))}; {types}"


def _words(settings: Mapping[str, Any]) -> str:
    method = str(settings.get("quant_method") or "quantized")
    values = ((form, settings.get(name)) for name, form in _SETTINGS)
    return ", ".join((method, *(form.format(value) for form, value in values if value not in (None, ""))))


def _counted(types: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(types).most_common()) + " tensors"
