"""The walk: each layer is solved for what it reads once those before it are small numbers; it can be interrupted."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration import activations
from llmc.compiler.calibration.activations import rounded_activations
from llmc.compiler.calibration.calibrate import Request, calibrated
from llmc.compiler.calibration.recipe import Recipe
from llmc.compiler.calibration.walk import Walk
from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solved_store import Stored
from llmc.compiler.quantization.solver import Solved, Solver, Statistics
from llmc.compiler.quantization.solvers.gptq import FactoredMoments, Gptq
from llmc.compiler.quantization.solvers.round import RoundToNearest

from .calibration_graphs import DOWN, LEFT, RIGHT, small_model, tokens
from .killing import Killed, killed_at

SCHEME, HEAD, TABLE = "int4-offset@32", "int4@32", "embed"
PLAN = {"linear": SCHEME, RIGHT: "q5@32:a16", "head": HEAD, "embedding": HEAD}
WINDOWS = tokens(10, 24)


def request(model: ir.Model, **changes: Any) -> Request:
    settings: dict[str, Any] = {
        "model": model,
        "plan": PLAN,
        "kept_zeros": (),
        "windows": WINDOWS,
        "recipe": Recipe(Gptq(clippings=3)),
        "otherwise": RoundToNearest(),
        "dtype": np.dtype(np.float32),
        "identity": "weights",
        "threads": 2,
    }
    return Request(**{**settings, **changes})


def solved(tmp_path: Path, **changes: Any) -> dict[str, Array]:
    """What the numbers of each calibrated site stand for."""
    with calibrated(request(small_model(), **changes), tmp_path, NO_PROGRESS) as solvers:
        return {name: values_of(name, solver) for name, solver in solvers.items()}


def values_of(name: str, solver: Solver) -> Array:
    assert isinstance(solver, Stored)
    stored = solver.read(0, 1000)
    return dequantize(stored, kind_of(name), stored.levels.shape[1])


def kind_of(name: str) -> Scheme:
    return scheme({TABLE: HEAD, RIGHT: "q5@32"}.get(name, SCHEME))


def scheme(name: str = SCHEME) -> Scheme:
    found = scheme_of(name)
    assert found is not None
    return found


def weight(model: ir.Model, name: str) -> Array:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return np.asarray(tensor.numpy(), np.float64)


def rows(model: ir.Model, name: str) -> Array:
    """[out, in] float32."""
    return np.ascontiguousarray(weight(model, f"{name}.weight").T.astype(np.float32))


def table(model: ir.Model) -> Array:
    """As it is looked up in: in floats, since its numbers are the head's, which is solved last."""
    return weight(model, "embed.weight")


def expected(
    read: Array, model: ir.Model, name: str, cross: Array | None = None, lacks: Array | None = None
) -> Array:
    """GPTQ for inputs [tokens, features]; ``lacks``: what the stream behind it does, [tokens, rows]."""
    solver, moments = Gptq(clippings=3), torch.from_numpy(read.T @ read)
    missing = None if lacks is None else torch.from_numpy(lacks.T @ read)
    crossed = None if cross is None else solver.correction(moments, torch.from_numpy(cross.T @ read), missing)
    kind = kind_of(name)
    floats = weight(model, "embed.weight").astype(np.float32) if name == TABLE else rows(model, name)
    found = solver.prepare(moments, kind, crossed).solve(floats)
    return dequantize(found, kind, read.shape[1])


def product_of(hidden: Array, left: Array, right: Array) -> Array:
    """What the last layer reads, from rows [out, in]."""
    return (hidden @ right.T) / (1 + np.exp(-(hidden @ left.T)))


def require_near(one: Array, other: Array) -> None:
    """The same but for a few numbers that lay between two levels."""
    assert (np.abs(one - other) > 1e-3).mean() < 0.01


def test_each_layer_is_solved_for_what_it_reads_behind_solved_ones(tmp_path: Path) -> None:
    model, found = small_model(), solved(tmp_path)
    hidden = table(model)[WINDOWS.reshape(-1)]
    assert set(found) == {LEFT, RIGHT, DOWN, TABLE}
    for name in (LEFT, RIGHT):
        require_near(found[name], expected(hidden, model, name))
    behind = product_of(hidden, found[LEFT], found[RIGHT])
    require_near(found[DOWN], expected(behind, model, DOWN))
    # A head that shares its table's bytes is solved for the end of the residual stream.
    require_near(found[TABLE], expected(hidden + behind @ found[DOWN].T, model, TABLE))
    # Not for what it reads in floats.
    floats = product_of(hidden, rows(model, LEFT), rows(model, RIGHT))
    assert (np.abs(found[DOWN] - expected(floats, model, DOWN)) > 1e-3).mean() > 0.02


def test_the_float_models_output_is_matched_where_that_is_asked(tmp_path: Path) -> None:
    model, found = small_model(), solved(tmp_path, recipe=Recipe(Gptq(clippings=3), match_float=True))
    hidden, exact = table(model)[WINDOWS.reshape(-1)], weight(model, "embed.weight")[WINDOWS.reshape(-1)]
    for name in (LEFT, RIGHT):
        require_near(found[name], expected(hidden, model, name, exact))
    behind, floats = (
        product_of(hidden, found[LEFT], found[RIGHT]),
        product_of(exact, rows(model, LEFT), rows(model, RIGHT)),
    )
    require_near(found[DOWN], expected(behind, model, DOWN, floats))


def rounded(read: Array) -> Array:
    """As the operator of a packed product sees it."""
    return rounded_activations(torch.from_numpy(read.astype(np.float32))).double().numpy()


@pytest.mark.parametrize("match", [False, True])
def test_packed_products_are_solved_for_the_integers_that_they_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, match: bool
) -> None:
    """Beside a product that reads the same value in floats, and the model in floats, which rounds nothing."""
    monkeypatch.setattr(activations, "LARGEST", 5)  # so that a little text shows it
    recipe = Recipe(Gptq(clippings=3), match_float=match)
    model, found = small_model(), solved(tmp_path, recipe=recipe, plan={**PLAN, RIGHT: "q5@32"})
    hidden = table(model)[WINDOWS.reshape(-1)]
    cross = hidden if match else None
    require_near(found[LEFT], expected(hidden, model, LEFT, cross))
    wanted = expected(rounded(hidden), model, RIGHT, cross)
    require_near(found[RIGHT], wanted)
    assert (np.abs(wanted - expected(hidden, model, RIGHT, cross)) > 1e-3).mean() > 0.02
    # What comes of a product is what its operator makes of rounded inputs.
    gate, floats = hidden @ found[LEFT].T, product_of(hidden, rows(model, LEFT), rows(model, RIGHT))
    behind = (rounded(hidden) @ found[RIGHT].T) / (1 + np.exp(-gate))
    require_near(found[DOWN], expected(behind, model, DOWN, floats if match else None))


def test_what_the_stream_lacks_is_made_up_for_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A table that is rounded by itself: the stream beside the last layer is off."""
    model, plan = small_model(), {"linear": SCHEME, RIGHT: "q5@32:a16", "embedding": "int4@32"}
    recipe, kind = Recipe(Gptq(clippings=3), match_float=True), scheme("int4@32")
    floats = weight(model, "embed.weight").astype(np.float32)
    ids = WINDOWS.reshape(-1)
    exact = floats.astype(np.float64)[ids]
    hidden = dequantize(RoundToNearest().solve(floats, None, kind), kind, 32).astype(np.float64)[ids]
    found = solved(tmp_path / "whole", plan=plan, recipe=recipe)
    behind = product_of(hidden, found[LEFT], found[RIGHT])
    before = product_of(exact, rows(model, LEFT), rows(model, RIGHT))
    lacks = exact - hidden
    require_near(found[DOWN], expected(behind, model, DOWN, before, lacks))
    assert (np.abs(found[DOWN] - expected(behind, model, DOWN, before)) > 1e-3).mean() > 0.02
    # Rows that are solved a few at a time each get their own part.
    monkeypatch.setattr("llmc.compiler.calibration.matrices.ROWS", 7)
    pieces = solved(tmp_path / "pieces", plan=plan, recipe=recipe)
    require_near(pieces[DOWN], found[DOWN])


@pytest.mark.parametrize("match", [False, True])
def test_the_numbers_do_not_depend_on_the_number_of_threads(tmp_path: Path, match: bool) -> None:
    recipe = Recipe(match_float=match)
    results = [solved(tmp_path / str(n), threads=threads, recipe=recipe) for n, threads in enumerate((1, 2, 2, 3))]
    for other in results[1:]:
        for name, values in results[0].items():
            assert values.tobytes() == other[name].tobytes()


def test_a_table_that_is_not_calibrated_is_looked_up_in_as_it_is_stored(tmp_path: Path) -> None:
    model, found = small_model(), solved(tmp_path, plan={"linear": SCHEME, "embedding": "int4@32"})
    kind, floats = scheme("int4@32"), weight(model, "embed.weight").astype(np.float32)
    rounded = dequantize(RoundToNearest().solve(floats, None, kind), kind, 32).astype(np.float64)
    hidden = rounded[WINDOWS.reshape(-1)]
    require_near(found[LEFT], expected(hidden, model, LEFT))
    assert (np.abs(found[LEFT] - expected(table(model)[WINDOWS.reshape(-1)], model, LEFT)) > 1e-3).mean() > 0.02


def test_torch_keeps_its_threads(tmp_path: Path) -> None:
    before = torch.get_num_threads()
    solved(tmp_path)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("method", "count"), [("_solve", 1), ("_solve", 2), ("_advance", 2), ("_advance", 3)])
@pytest.mark.parametrize("match", [False, True])
def test_a_walk_that_was_killed_goes_on_and_ends_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, count: int, match: bool
) -> None:
    recipe = Recipe(match_float=match)
    whole = solved(tmp_path / "whole", recipe=recipe)
    original = getattr(Walk, method)
    monkeypatch.setattr(Walk, method, killed_at(count, original))
    with pytest.raises(Killed):
        solved(tmp_path / "killed", recipe=recipe)
    calls: list[object] = []

    def counted(*arguments: Any, **named: Any) -> Any:
        calls.append(arguments)
        return original(*arguments, **named)

    monkeypatch.setattr(Walk, method, counted)
    again = solved(tmp_path / "killed", recipe=recipe)
    assert {name: values.tobytes() for name, values in again.items()} == {
        name: values.tobytes() for name, values in whole.items()
    }
    # What was done is not done again.
    everything = 5 if method == "_solve" else 4 * (1 + match)
    assert len(calls) < everything


def test_a_write_that_was_killed_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from llmc.compiler.calibration.spool import Spool

    whole = solved(tmp_path / "whole")
    monkeypatch.setattr(Spool, "write", killed_at(27, Spool.write))
    with pytest.raises(Killed):
        solved(tmp_path / "killed", threads=1)
    monkeypatch.undo()
    for name, values in solved(tmp_path / "killed").items():
        assert values.tobytes() == whole[name].tobytes()


def test_moments_alone_do_not_solve() -> None:
    """The statistics that the tests compute are those that the solver asks for."""
    model = small_model()
    hidden = table(model)[WINDOWS.reshape(-1)]
    direct = Gptq(clippings=3).solve(rows(model, LEFT), Statistics(hidden.T @ hidden), scheme())
    assert np.array_equal(dequantize(direct, scheme(), 32), expected(hidden, model, LEFT))


@pytest.mark.parametrize("match", [False, True])
@pytest.mark.parametrize("fault", ["percent", "blocks"])
def test_a_site_whose_solved_numbers_are_wrong_is_named_and_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, fault: str, match: bool
) -> None:
    """One percent in one layer; the scales of blocks in each other's place."""
    solve = FactoredMoments.solve

    def wrong(self: FactoredMoments, floats: Array, dtype: np.dtype[Any] | None = None, start: int = 0) -> Solved:
        numbers = solve(self, floats, dtype, start)
        if not np.array_equal(floats, rows(small_model(), DOWN)):
            return numbers
        scales = numbers.scales * np.float32(1.01) if fault == "percent" else numbers.scales[:, ::-1].copy()
        return replace(numbers, scales=scales)

    recipe = Recipe(Gptq(clippings=3), match_float=match)
    right = solved(tmp_path / "right", recipe=recipe)
    assert not caplog.records
    monkeypatch.setattr(FactoredMoments, "solve", wrong)
    found = solved(tmp_path / "wrong", recipe=recipe)
    (said,) = {record.getMessage() for record in caplog.records if record.levelname == "WARNING"}
    assert said.startswith(f"{DOWN} is rounded, since the numbers that were solved for it are wrong: they ")
    floats = rows(small_model(), DOWN)
    rounded = dequantize(RoundToNearest().solve(floats, None, scheme()), scheme(), floats.shape[1])
    assert np.array_equal(found[DOWN], rounded)
    assert np.array_equal(found[LEFT], right[LEFT])
