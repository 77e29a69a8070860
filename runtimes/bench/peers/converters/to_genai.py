"""A checkpoint for ONNX Runtime GenAI on a processor, by its model builder: ``SOURCE OUTPUT TYPE``.

In: a folder with config.json and safetensors. Out: a folder with genai_config.json and a graph.

The head sees a prompt's last position alone, as in llmc's engines, and keeps 8 bits where the others have 4. The
builder's own choice is all positions, which costs a prompt a third of its speed, and a head of 4 bits.
"""

from __future__ import annotations

import runpy
import sys
import tempfile
from collections.abc import Mapping

BUILDER = "onnxruntime_genai.models.builder"
PRUNED = ("prune_lm_head=true",)
OPTIONS: Mapping[str, tuple[str, ...]] = {
    "int4": (*PRUNED, "algo_config=k_quant", "matmul_mixed_precision=last_matmul:int8"),
    "int8": PRUNED,
    "fp32": PRUNED,
}
"""Precision -> the builder's ``--extra_options``."""


def convert(source: str, output: str, kind: str) -> None:
    """Write the folder."""
    with tempfile.TemporaryDirectory() as cache:
        paths = ["-i", source, "-o", output, "-c", cache]
        sys.argv[:] = [BUILDER, *paths, "-p", kind, "-e", "cpu", "--extra_options", *OPTIONS[kind]]
        runpy.run_module(BUILDER, run_name="__main__")


if __name__ == "__main__":
    convert(*sys.argv[1:4])
