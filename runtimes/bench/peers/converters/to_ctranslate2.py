"""A checkpoint for CTranslate2, by its own converter: ``SOURCE OUTPUT TYPE``.

In: a folder with config.json and safetensors. Out: a folder with model.bin and vocabulary.json.
"""

from __future__ import annotations

import importlib
import sys
from typing import Any


def convert(source: str, output: str, kind: str) -> None:
    """Write the folder; ``kind`` is a quantization of CTranslate2's."""
    converters: Any = importlib.import_module("ctranslate2.converters")
    converters.TransformersConverter(source, low_cpu_mem_usage=True).convert(output, quantization=kind)


if __name__ == "__main__":
    convert(*sys.argv[1:4])
