"""The room's door: which sites are calibrated, what is kept for a restart, and who may go on with it."""

from __future__ import annotations

import logging
import os
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration import calibrate
from llmc.compiler.calibration.calibrate import Request, calibrated, site_plans
from llmc.compiler.calibration.recipe import Recipe
from llmc.compiler.quantization.scheme import scheme_of
from llmc.compiler.quantization.solved_store import Stored
from llmc.compiler.quantization.solvers.gptq import Gptq
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.quantization.sites import find_sites

from .calibration_graphs import small_model, tokens


def request(**changes: Any) -> Request:
    plan = {"linear": "int4@32", "linear:down": "q5@32", "head": "int8@32", "embedding": "int8@32"}
    windows, recipe = tokens(4, 8), Recipe(Gptq(clippings=1))
    made = Request(
        small_model(), plan, (), windows, recipe, RoundToNearest(), np.dtype(np.float32), ["weights"], threads=1
    )
    return replace(made, **changes)


def key(**changes: Any) -> str:
    return calibrate._key(request(**changes))


def walks(cache: Path) -> list[Path]:
    return [path for path in cache.iterdir() if path.is_dir()]


def test_sites_are_calibrated_where_their_input_says_something(caplog: pytest.LogCaptureFixture) -> None:
    asked = request()
    with caplog.at_level(logging.INFO):
        plans = site_plans(asked, find_sites(asked.model))
    by_name = {(site.kind, site.name): plans[site.node] for site in find_sites(asked.model)}
    assert {site: plan.calibrated for site, plan in by_name.items()} == {
        ("embedding", "embed"): True,
        ("linear", "left"): True,
        ("linear", "right"): True,
        ("linear", "down"): True,
        ("head", "embed"): True,
    }
    assert "without calibration" not in caplog.text


def test_a_table_is_calibrated_only_as_a_head_that_is_stored_alike(caplog: pytest.LogCaptureFixture) -> None:
    plans = {"int8@32": "float", "int4@32": "int8@32"}
    for table, head in plans.items():
        asked = request(plan={"head": head, "embedding": table})
        with caplog.at_level(logging.INFO):
            found = site_plans(asked, find_sites(asked.model))
        kinds = {site.kind: found[site.node].calibrated for site in find_sites(asked.model)}
        assert not kinds["embedding"]
        assert not kinds["head"]
    assert "1 of 5 weights are quantized without calibration: a table is looked up in" in caplog.text
    assert "1 of 5 weights are quantized without calibration: several layers share their bytes" in caplog.text


def test_floats_are_left_alone() -> None:
    asked = request(plan={"linear": "fp8"})
    assert not any(plan.calibrated for plan in site_plans(asked, find_sites(asked.model, head=False)).values())


def test_weights_that_lie_on_a_grid_are_kept(tmp_path: Path) -> None:
    model = small_model()
    levels = np.random.default_rng(3).integers(-8, 8, (64, 32))
    levels[:, 0] = -8
    on_grid = ir.tensor((levels * 0.125).astype(np.float32).T.copy(), name="left.weight")
    model.graph.initializers["left.weight"].const_value = on_grid
    asked = request(model=model, kept_zeros=("none", "offset"))
    plans = {
        site.name: plan
        for site, plan in zip(find_sites(model), site_plans(asked, find_sites(model)).values(), strict=True)
    }
    assert not plans["left"].calibrated
    assert plans["left"].scheme == scheme_of("int4@32")
    with calibrated(asked, tmp_path, NO_PROGRESS) as solvers:
        assert set(solvers) == {"right", "down", "embed"}


def test_where_nothing_is_calibrated_nothing_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibrate, "Walk", None)
    with calibrated(request(plan={"linear": "fp8"}), tmp_path, NO_PROGRESS) as solvers:
        assert solvers == {}
    assert walks(tmp_path) == []


def test_what_decides_about_the_numbers_decides_about_the_key() -> None:
    keys = [
        key(),
        key(plan={"linear": "int4@64"}),
        key(kept_zeros=("none",)),
        key(windows=tokens(4, 9)),
        key(windows=tokens(4, 8)[::-1].copy()),
        key(windows=tokens(2, 16)),
        key(recipe=Recipe(Gptq(damping=0.5, clippings=1))),
        key(recipe=Recipe(Gptq(clippings=1), match_float=True)),
        key(dtype=np.dtype(np.float16)),
        key(identity=["others"]),
    ]
    assert len(set(keys)) == len(keys)
    assert key() == key(threads=7)


def test_numbers_can_be_read_until_the_block_ends(tmp_path: Path) -> None:
    with calibrated(request(), tmp_path, NO_PROGRESS) as solvers:
        assert set(solvers) == {"left", "right", "down", "embed"}
        stored = solvers["left"]
        assert isinstance(stored, Stored)
        assert stored.read(0, 64).levels.shape == (64, 32)
        assert len(walks(tmp_path)) == 1
    assert list(tmp_path.iterdir()) == []


def test_what_fails_behind_it_does_not_cost_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ZeroDivisionError), calibrated(request(), tmp_path, NO_PROGRESS):
        raise ZeroDivisionError
    monkeypatch.setattr(Gptq, "prepare", None)  # nothing is left to solve
    with calibrated(request(), tmp_path, NO_PROGRESS) as solvers:
        assert set(solvers) == {"left", "right", "down", "embed"}
    assert walks(tmp_path) == []


def test_old_walks_are_removed(tmp_path: Path) -> None:
    (tmp_path / "old.lock").touch()
    for name, age in (("old", calibrate.KEPT_SECONDS + 100), ("new", 0)):
        (tmp_path / name).mkdir()
        journal = tmp_path / name / "journal.json"
        journal.write_text("{}")
        os.utime(journal, (journal.stat().st_atime - age, journal.stat().st_mtime - age))
    with calibrated(request(), tmp_path, NO_PROGRESS):
        assert {path.name for path in walks(tmp_path)} > {"new"}
    assert [path.name for path in tmp_path.iterdir()] == ["new"]


def test_who_asks_for_the_same_waits(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entered, done = threading.Event(), threading.Event()

    def other() -> None:
        with calibrated(request(), tmp_path, NO_PROGRESS):
            entered.set()

    with calibrated(request(), tmp_path, NO_PROGRESS):
        thread = threading.Thread(target=lambda: (other(), done.set()))
        thread.start()
        assert not entered.wait(1)
    assert done.wait(30)
    thread.join()
    assert list(tmp_path.iterdir()) == []
    assert "another process calibrates the same weights" in caplog.text
