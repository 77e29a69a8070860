"""A model of the hub, compiled through the command line: what the manifest keeps of where it came from."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ..hub_server import hub_server
from ..shared import Shared
from .tiny import shared_model

COMMAND = [sys.executable, "-c", "from llmc.compiler.cli.app import main; main()"]


@pytest.mark.parametrize("words", [["org/tiny@v1"], ["org/tiny", "--revision", "v1"]])
def test_export_of_a_revision(shared: Shared, tmp_path: Path, words: list[str]) -> None:
    source = shared_model(shared)
    with hub_server() as hub:
        repository = hub.add("org/tiny", {path.name: path.read_bytes() for path in source.iterdir()})
        first = repository.branches["main"]
        repository.tags["v1"] = first
        repository.commit({"config.json": b"{}", "model.safetensors": b""})
        settings = {"HF_ENDPOINT": hub.address, "HF_HOME": str(tmp_path / "home"), "HF_HUB_DISABLE_XET": "1"}
        result = subprocess.run(
            [*COMMAND, "export", *words, "-o", str(tmp_path / "out"), "--verify", "off", "-v"],
            env={**os.environ, **settings},
            capture_output=True,
            text=True,
            timeout=240,
        )
    assert result.returncode == 0, result.stderr
    assert "Downloading org/tiny" in result.stderr
    source_record = json.loads((tmp_path / "out" / "llmc.json").read_text())["source"]
    assert {key: source_record[key] for key in ("name", "revision", "commit")} == {
        "name": "org/tiny",
        "revision": "v1",
        "commit": first,
    }
