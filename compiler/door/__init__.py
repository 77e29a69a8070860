"""llmc for Python programs: compile a model, open an engine, ask it for text or logits.

This folder is the package ``llmc`` itself. Importing it loads nothing large: torch, ONNX, NumPy and the runtimes come
with the first call that needs them. See docs/python.md.
"""

from llmc.compiler.api import Engine, compile, generate, open
from llmc.compiler.artifact.reports import CompileReport
from llmc.compiler.base.errors import LlmcError
from llmc.compiler.base.options import CompileOptions, EngineOptions, ExportOptions, OptimizeOptions
from llmc.compiler.base.progress import Progress
from llmc.runtimes.session.sampling_params import SamplingParams

__all__ = [
    "CompileOptions",
    "CompileReport",
    "Engine",
    "EngineOptions",
    "ExportOptions",
    "LlmcError",
    "OptimizeOptions",
    "Progress",
    "SamplingParams",
    "compile",
    "generate",
    "open",
]
