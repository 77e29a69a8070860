"""Versions of what shapes an artifact's bytes, where some of it is not installed."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError

import pytest

from llmc.compiler.base import versions
from llmc.compiler.base.versions import llmc_version, tool_versions


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Distribution -> version of all that there is."""
    there: dict[str, str] = {}

    def version(name: str) -> str:
        if name not in there:
            raise PackageNotFoundError(name)
        return there[name]

    monkeypatch.setattr(versions, "version", version)
    return there


def test_what_is_installed_has_a_version(installed: dict[str, str]) -> None:
    """A package that shapes no bytes is not named."""
    installed.update({"llmc-toolchain": "0.3", "torch": "2.9", "onnx-ir": "0.1", "openvino": "2026"})
    assert llmc_version() == "0.3"
    assert tool_versions() == {"llmc": "0.3", "torch": "2.9", "onnx-ir": "0.1"}


def test_a_source_tree_that_is_not_installed(installed: dict[str, str]) -> None:
    assert llmc_version() == "0+unknown"
    assert tool_versions() == {"llmc": "0+unknown"}
