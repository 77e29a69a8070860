"""A tiny Llama's portable graph, and a ledger kept while passes run on it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.options import OptimizeOptions
from llmc.compiler.driver.capabilities import find_capabilities
from llmc.compiler.driver.target_passes import target_passes
from llmc.compiler.ledger.ledger import Ledger
from llmc.compiler.ledger.probes import Probes
from llmc.passes.graph_pass import GraphPass
from llmc.passes.runner import run_passes

from ...end_to_end.tiny import shared_portable
from ...shared import Shared

Kept = Callable[[Sequence[GraphPass]], Ledger]


@pytest.fixture
def sizes() -> dict[str, int]:
    """What the model has otherwise; a test may give its own."""
    return {}


@pytest.fixture
def portable(shared: Shared, sizes: dict[str, int]) -> Path:
    return shared_portable(shared, **sizes)


@pytest.fixture
def manifest(portable: Path) -> Manifest:
    return open_artifact(portable).manifest


@pytest.fixture
def passes_for(manifest: Manifest) -> Callable[..., list[GraphPass]]:
    """The passes for a target: ``passes_for(target="cuda", precision="fp16")``."""

    def passes(**options: object) -> list[GraphPass]:
        capabilities = find_capabilities(installed=False)
        return target_passes(manifest.model, OptimizeOptions(**options), capabilities)  # type: ignore[arg-type]

    return passes


@pytest.fixture
def keep(portable: Path, manifest: Manifest, tmp_path: Path) -> Kept:
    """Run passes on the graph, and keep a ledger in ``tmp_path / "ledger"``."""

    def run(passes: Sequence[GraphPass]) -> Ledger:
        ledger = Ledger(tmp_path / "ledger", manifest, Probes.of(None, manifest.model.vocab_size))
        run_passes(ir.load(portable / "model.onnx"), passes, observer=ledger)
        return ledger

    return run
