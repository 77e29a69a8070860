"""Versions of llmc and of the packages that shape an artifact's bytes.

In: installed distributions. Out: name -> version, without importing any of them.
"""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "llmc-toolchain"
SHAPING = ("torch", "transformers", "onnx", "onnx-ir", "onnxscript", "onnxruntime", "numpy")


def llmc_version() -> str:
    """The installed version; ``0+unknown`` in a source tree that is not installed."""
    return _version(DISTRIBUTION) or "0+unknown"


def tool_versions() -> dict[str, str]:
    """Of llmc and of each shaping package that is installed."""
    found = {name: _version(name) for name in SHAPING}
    return {"llmc": llmc_version(), **{name: text for name, text in found.items() if text is not None}}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
