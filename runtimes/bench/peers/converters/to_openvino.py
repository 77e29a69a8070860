"""A checkpoint for OpenVINO GenAI, by optimum-intel's export: ``SOURCE OUTPUT TYPE``.

In: a folder with config.json and safetensors. Out: a folder with openvino_model.xml.

Blocks are of 128 weights, optimum's default, where all rows are a multiple of that, else of 64 or 32: NNCF refuses
others.
"""

from __future__ import annotations

import importlib
import json
import sys
from pathlib import Path
from typing import Any

BLOCKS = (128, 64, 32)
TASK = "text-generation-with-past"


def block_size(config: dict[str, Any]) -> int:
    """Largest of :data:`BLOCKS` that divides the rows of all linear layers.

    Raises:
        ValueError: none does.
    """
    text = config.get("text_config") or config
    widths = [text["hidden_size"], text["intermediate_size"]]
    for block in BLOCKS:
        if not any(width % block for width in widths):
            return block
    raise ValueError(f"no block of {BLOCKS} weights divides rows of {widths}")


def convert(source: str, output: str, kind: str) -> None:
    """Write the folder; int4 and int8 quantize weights, other types are what floats are stored in."""
    options = ["--task", TASK, "--weight-format", kind, "--disable-convert-tokenizer"]
    if kind == "int4":
        block = block_size(json.loads((Path(source) / "config.json").read_text()))
        options += ["--group-size", str(block), "--ratio", "1.0"]
    client: Any = importlib.import_module("optimum.commands.optimum_cli")
    sys.argv[:] = ["optimum-cli", "export", "openvino", "--model", source, *options, output]
    client.main()


if __name__ == "__main__":
    convert(*sys.argv[1:4])
