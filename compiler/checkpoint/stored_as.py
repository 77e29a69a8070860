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
from llmc.compiler.checkpoint.quantized.open_quantized import KEYS, SIDE_FILES
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
    stated = stated_settings(path)
    return types if stated is None else f"{_words(stated)}; {types}"


def stated_settings(directory: Path) -> Mapping[str, Any] | None:
    """What a producer says of its quantization, in ``config.json`` or beside it; None: nothing.

    Raises:
        CheckpointError: a file is damaged.
    """
    config = read_json_object(directory / "config.json")
    text = config.get("text_config")
    for holder in (config, text if isinstance(text, dict) else {}):
        for key in KEYS:
            if isinstance(settings := holder.get(key), dict):
                return settings
    for name, method in SIDE_FILES.items():
        if (directory / name).is_file():
            settings = read_json_object(directory / name)
            inner = settings.get("quantization", settings)
            return {"quant_method": method, **(inner if isinstance(inner, dict) else {})}
    return None


def _words(settings: Mapping[str, Any]) -> str:
    method = str(settings.get("quant_method", "quantized"))
    values = ((form, settings.get(name)) for name, form in _SETTINGS)
    return ", ".join((method, *(form.format(value) for form, value in values if value not in (None, ""))))


def _counted(types: Iterable[str]) -> str:
    return ", ".join(f"{count} {name}" for name, count in Counter(types).most_common()) + " tensors"
