from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.bench.peers import environments
from llmc.runtimes.bench.peers.environments import Environment

FAKE = Environment(
    "fake",
    "transformers",
    ("fakepeer",),
    ("fakepeer",),
    ("int4", "int8"),
    installed_bytes=1000,
    download_bytes=100,
    torch=None,
)


@pytest.fixture
def make_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """``make_environment(lock, **fields)``: an environment with its lock and converters in a test's folder."""
    folder = tmp_path / "peers"
    for name in ("locks", "converters"):
        (folder / name).mkdir(parents=True)
    monkeypatch.setattr(environments, "FOLDER", folder)

    def make(lock: str = "fakepeer==1.0\n", **fields: Any) -> Environment:
        environment = replace(FAKE, **fields)
        environment.lock.write_text(lock)
        return environment

    return make
