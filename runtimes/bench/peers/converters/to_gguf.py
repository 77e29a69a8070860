"""A checkpoint as a GGUF file of floats, by llama.cpp's own script: ``SOURCE OUTPUT TYPE LLAMA-CPP``.

In: a folder with config.json and safetensors; the part of llama.cpp's source that holds ``convert_hf_to_gguf.py``.
Out: a file ``float.gguf`` in the folder OUTPUT, in the checkpoint's own 16 bits, float32 where it has 32. TYPE is not
heeded here: llama.cpp's worker quantizes the file with ``llama_model_quantize``.
"""

from __future__ import annotations

import json
import runpy
import sys
from pathlib import Path

SCRIPT, FILE = "convert_hf_to_gguf.py", "float.gguf"
OUTTYPES = {"bfloat16": "bf16", "float16": "f16"}


def outtype(source: str) -> str:
    """llama.cpp's name of the checkpoint's numbers; by itself its script would take 16 bits where there are 32."""
    config = json.loads(Path(source, "config.json").read_text())
    text = config.get("text_config") or {}
    stated = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    return OUTTYPES.get(str(stated), "f32")


def convert(source: str, output: str, kind: str, llama_cpp: str) -> None:
    """Write the folder with the file."""
    Path(output).mkdir()
    # Its own gguf package fits the script; one from the registry may lack names that it uses.
    sys.path[:0] = [llama_cpp, str(Path(llama_cpp, "gguf-py"))]
    script = str(Path(llama_cpp, SCRIPT))
    sys.argv[:] = [script, source, "--outfile", str(Path(output, FILE)), "--outtype", outtype(source)]
    runpy.run_path(script, run_name="__main__")


if __name__ == "__main__":
    convert(*sys.argv[1:5])
