"""Zero points of every kind that a target has, from the option to the logits of a small model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.options import ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import export, optimize

from ..shared import Shared
from .oracle import Row
from .test_standard_targets import reference_rows, session_error
from .tiny import save_rounded


@pytest.fixture(scope="module")
def source(shared: Shared) -> Path:
    """A model whose layers' weights are 4 bits with integer zero points: in that form nothing is lost."""
    return shared.make("zero-points/hf", lambda path: save_rounded(path, "llama", whole=True))


@pytest.fixture(scope="module")
def portable(shared: Shared, source: Path) -> Path:
    return shared.make("zero-points/portable", lambda path: export(str(source), path, ExportOptions(verify="off")))


@pytest.fixture(scope="module")
def rows(source: Path) -> list[Row]:
    return reference_rows(source)


@pytest.mark.parametrize("zero", ["none", "integer", "offset"])
@pytest.mark.parametrize("precision", ["int4", "int8"])
def test_a_graph_for_the_cpu(portable: Path, rows: list[Row], tmp_path: Path, precision: Any, zero: Any) -> None:
    """Its products round activations to int8, which costs 0.05 to 0.07 of the largest logit; 4 bits alone, 0.3."""
    optimize(portable, tmp_path / "out", OptimizeOptions(precision=precision, zero_points=zero, strict=True))
    error = session_error(tmp_path / "out", rows)
    assert error > 0.2 if (precision, zero) == ("int4", "none") else error < 0.1
