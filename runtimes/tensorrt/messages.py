"""What TensorRT says, kept so that an error can say it in one sentence.

In: lines of TensorRT's logger and errors of its ONNX parser. Out: :meth:`Messages.reason`, the first of them without
the names of TensorRT's own source files, and with what to do where that is known.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

log = logging.getLogger(__name__)

ADVICE = (
    ("fp4_e2m1", "NVFP4 weights need a GPU of compute capability 12.0 or later: build for such GPUs alone"),
    ("fp8_e4m3", "fp8 weights need a GPU of compute capability 8.9 or later: build for such GPUs alone"),
    ("not supported by a dedicated kernel", "use fp16 or bf16 and heads of at most 256 elements"),
    ("graph_jit", "this build compiles kernels, which needs a GPU of the kind it is meant for"),
    ("CUDA driver version", "there is no NVIDIA driver here, or one that is too old"),
)
"""Part of a message -> what to do about it."""
_PLACE = re.compile(r"(?:\s*In \S+ at /\S+?:\d+)|(?:\[?[\w./]+\.(?:cpp|h|cu)(?:::\w+)*:\d*:?:?\s*\w*\]?)")
_HEAD = re.compile(r"^\w+::\w+: Error Code \d+: ")
_CUDA = re.compile(r"\(cudaError \d+: ([^)]*)\)")
_COMPILER = re.compile(r"Myelin \(\[[^\]]*\]\s*(?:\w+Exception: )?(?:[\w./]+\.cpp:\d+: )?(.*?)\.?\s+In \w+ at /")
_QUOTED = re.compile(r'&& "([^"]+)"')


class Messages:
    """Errors and warnings, in their order."""

    def __init__(self) -> None:
        """Nothing was said yet."""
        self.errors: list[str] = []

    def clear(self) -> None:
        """Forget them."""
        self.errors.clear()

    def add(self, message: str, *, is_error: bool) -> None:
        """Keep an error; a warning is logged."""
        if is_error:
            log.debug("TensorRT: %s", message)
            self.errors.append(message)
        else:
            log.info("TensorRT: %s", message)

    def reason(self) -> str:
        """The first error in words, and what to do where that is known."""
        return explain(self.errors[0] if self.errors else "")


def explain(message: str) -> str:
    """A message of TensorRT without its source files, and what to do where that is known."""
    words = _clean(message)
    advice = next((what for part, what in ADVICE if part in message), None)
    return words if advice is None else f"{words}; {advice}"


def parser_reasons(parser: Any) -> Iterator[str]:
    """What the parser refuses, as ``Attention layers.0/attention: Setting softcap is not supported``."""
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        where = f"{error.node_operator()} {error.node_name()}".strip()
        said = [line for line in error.desc().splitlines() if not line.startswith("Invalid Node")]
        words = _clean(said[0] if said else "")
        yield f"{where}: {words}" if where else words


def _clean(message: str) -> str:
    if (failed := _CUDA.search(message)) is not None:
        return f"CUDA failed: {failed[1]}"
    said = _QUOTED.search(message) or _COMPILER.search(message)
    text = said[1] if said else _PLACE.sub("", _HEAD.sub("", message.strip()))
    first = " ".join((text.splitlines() or [""])[0].split())
    return first.removesuffix(".") or "it gives no reason"


def make_logger(module: Any, messages: Messages) -> Any:
    """A logger of TensorRT's that writes to ``messages``."""
    levels = module.ILogger

    class Logger(module.ILogger):  # type: ignore[misc]
        """Subclass of TensorRT's own class, which exists once the module is loaded."""

        def log(self, severity: Any, message: str) -> None:
            if severity in {levels.INTERNAL_ERROR, levels.ERROR}:
                messages.add(message, is_error=True)
            elif severity == levels.WARNING:
                messages.add(message, is_error=False)

    return Logger()
