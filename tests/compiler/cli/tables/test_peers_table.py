"""Peers as a table, and what is told before an installation."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console

from llmc.compiler.cli.tables.peers_table import installation_note, peers_table
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS
from llmc.runtimes.bench.peers.installation import Installation, PeerState


def test_what_is_there_and_what_installs_the_rest() -> None:
    environment = ENVIRONMENTS["llama.cpp"]
    present = Installation(environment, Path("/p/llama"), {"llama-cpp-python": "0.3.36"}, 1_530_000_000)
    table = peers_table([PeerState(environment, present), PeerState(ENVIRONMENTS["vllm"], None)], Path("/p"))
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(table)
    text = console.export_text()
    for words in ("0.3.36", "1.5 GB", "/p/llama/bin/python", "Q4_K_M, F32, F16, Q4_0, …"):
        assert words in text
    assert "llmc bench --install-peers vllm" in text
    assert "missing" in text


def test_sizes_are_told_before_anything_is_fetched() -> None:
    note = installation_note([ENVIRONMENTS["llama.cpp"], ENVIRONMENTS["ctranslate2"]], Path("/p")).splitlines()
    assert note[0] == "llama.cpp: 440 MB to fetch, 1.6 GB on the disk, built from its source"
    assert note[1].endswith("1.3 GB on the disk")
    assert note[2] == "about 2.9 GB in /p, less what is there already"
