"""Experts in a walk: each is solved for its own tokens, and for others where it has few."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch

from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.calibration import expert_walk
from llmc.compiler.calibration.calibrate import Request, calibrated
from llmc.compiler.calibration.expert_walk import other_tokens, own_tokens
from llmc.compiler.calibration.recipe import Recipe
from llmc.compiler.graph.lazy_weight import Array
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.scheme import Scheme, scheme_of
from llmc.compiler.quantization.solved_store import SolvedStore, Stored, StoredStack
from llmc.compiler.quantization.solver import Solver
from llmc.compiler.quantization.solvers.gptq import FactoredMoments, Gptq
from llmc.compiler.quantization.solvers.round import RoundToNearest
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from ...passes.graphs import run
from .expert_graphs import (
    EXPERTS,
    FC1,
    FC2,
    HEAD,
    INNER,
    WIDTH,
    behind,
    expert_model,
    graph_feeds,
    halves,
    routed,
    tokens,
    weights,
)
from .killing import Killed, killed_at

PLAN = {"experts": "int4-zero@32", "head": "int4-offset@32"}
WINDOWS = tokens(12, 40)
SOLVER = Gptq(clippings=3)


@pytest.fixture(autouse=True)
def own_tokens_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Unless a test says otherwise."""
    monkeypatch.setattr(expert_walk, "ENOUGH", 0)


def request(**changes: Any) -> Request:
    settings: dict[str, Any] = {
        "model": expert_model(),
        "plan": PLAN,
        "kept_zeros": (),
        "windows": WINDOWS,
        "recipe": Recipe(SOLVER),
        "otherwise": RoundToNearest(),
        "dtype": np.dtype(np.float32),
        "identity": "weights",
        "threads": 2,
    }
    return Request(**{**settings, **changes})


def solved(tmp_path: Path, **changes: Any) -> dict[str, Array]:
    """What the numbers of each calibrated weight stand for; of stacks [experts, out, in]."""
    with calibrated(request(**changes), tmp_path, NO_PROGRESS) as solvers:
        return {name: values_of(name, solver) for name, solver in solvers.items()}


def values_of(name: str, solver: Solver) -> Array:
    heights = {FC1: EXPERTS * 2 * INNER, FC2: EXPERTS * WIDTH, HEAD: 512}
    features = INNER if name == FC2 else WIDTH
    assert isinstance(solver, Stored | StoredStack)
    values = dequantize(solver.read(0, heights[name]), scheme(name), features)
    return values if name == HEAD else values.reshape(EXPERTS, -1, features)


def scheme(name: str) -> Scheme:
    found = scheme_of(PLAN["head" if name == HEAD else "experts"])
    assert found is not None
    return found


def expected(read: Array, costs: Array, rows: Array, name: str, floats: Array | None = None) -> Array:
    """GPTQ of a matrix for what it reads, [tokens, features], where each token counts as ``costs`` say."""
    wide = read.astype(np.float64)
    moments = torch.from_numpy((wide * costs[:, None]).T @ wide)
    cross = None if floats is None else torch.from_numpy((floats.astype(np.float64) * costs[:, None]).T @ wide)
    correction = None if cross is None else SOLVER.correction(moments, cross)
    numbers = SOLVER.prepare(moments, scheme(name), correction).solve(rows)
    return dequantize(numbers, scheme(name), rows.shape[1])


def require_near(one: Array, other: Array) -> None:
    """The same but for a few numbers that lay between two levels, and those behind them in their rows."""
    assert (np.abs(one - other) > 1e-3).mean() < 0.05


def differs(one: Array, other: Array) -> bool:
    return bool((np.abs(one - other) > 1e-3).mean() > 0.1)


def layer_inputs() -> tuple[dict[str, Array], Array, Array]:
    given = weights()
    x = given["embed.weight"][WINDOWS.reshape(-1)]
    return given, x, routed(x @ given["router.weight"])


def test_each_expert_is_solved_for_its_own_tokens(tmp_path: Path) -> None:
    given, x, shares = layer_inputs()
    found, upper, total = solved(tmp_path), halves(given["fc1"]), np.zeros_like(x)
    assert set(found) == {FC1, FC2, HEAD}
    for index in range(EXPERTS):
        own = shares[:, index] > 0
        read, costs = x[own], shares[own, index] ** 2
        require_near(found[FC1][index], expected(read, costs, upper[index], FC1))
        assert differs(found[FC1][index], expected(x, np.ones(len(x)), upper[index], FC1))
        # What closes it is solved for what it reads behind numbers, not behind floats.
        a = behind(found[FC1][index], read)
        require_near(found[FC2][index], expected(a, costs, given["fc2"][index], FC2))
        assert differs(found[FC2][index], expected(behind(upper[index], read), costs, given["fc2"][index], FC2))
        total[own] += shares[own, index, None] * (a @ found[FC2][index].T)
    # And the layer behind for what they make, all of them.
    require_near(found[HEAD], expected(x + total, np.ones(len(x)), given["head.weight"].T.copy(), HEAD))


def test_the_float_models_output_is_matched_where_that_is_asked(tmp_path: Path) -> None:
    """A table that is rounded: tokens go where the walk sends them, and are to be what they are in floats."""
    plan = {**PLAN, "embedding": "int4@32"}
    found = solved(tmp_path, plan=plan, recipe=Recipe(SOLVER, match_float=True))
    given, exact, _ = layer_inputs()
    kind = scheme_of("int4@32")
    assert kind is not None
    table = dequantize(RoundToNearest().solve(given["embed.weight"], None, kind), kind, WIDTH)
    x, upper = table[WINDOWS.reshape(-1)], halves(given["fc1"])
    shares = routed(x @ given["router.weight"])
    elsewhere = routed(exact @ given["router.weight"]) > 0
    assert (elsewhere != (shares > 0)).any()
    for index in range(EXPERTS):
        own = shares[:, index] > 0
        costs = shares[own, index] ** 2
        require_near(found[FC1][index], expected(x[own], costs, upper[index], FC1, exact[own]))
        assert differs(found[FC1][index], expected(x[own], costs, upper[index], FC1))
        read, floats = behind(found[FC1][index], x[own]), behind(upper[index], exact[own])
        require_near(found[FC2][index], expected(read, costs, given["fc2"][index], FC2, floats))


def test_tokens_of_an_expert_that_has_enough_are_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(expert_walk, "ENOUGH", 2)
    own = own_tokens(np.asarray([0, 0.5, 0, 1, 0.25, 0.5, 0, 0], np.float32))
    assert own.rows.tolist() == [1, 3, 4, 5]
    assert own.costs.tolist() == [0.25, 1, 0.0625, 0.25]
    assert len(other_tokens(own, 2, 8, 8).rows) == 0
    assert len(other_tokens(own, 3, 8, 8).rows) == 8


def test_what_an_expert_lacks_comes_from_all_tokens(monkeypatch: pytest.MonkeyPatch) -> None:
    """Four are missing, for which four or two stand; each token that is missing counts as its own do on average."""
    monkeypatch.setattr(expert_walk, "ENOUGH", 2)
    own = own_tokens(np.asarray([0, 0.5, 0, 1, 0, 0, 0, 0], np.float32))
    four, two = other_tokens(own, 3, 8, 4), other_tokens(own, 3, 8, 2)
    assert (four.rows.tolist(), four.costs.tolist()) == ([0, 2, 4, 6], [0.625] * 4)
    assert (two.rows.tolist(), two.costs.tolist()) == ([0, 4], [1.25] * 2)
    nobody = other_tokens(own_tokens(np.zeros(8, np.float32)), 4, 8, 100)
    assert (nobody.rows.tolist(), nobody.costs.tolist()) == (list(range(8)), [1.0] * 8)


@pytest.mark.parametrize("match", [False, True])
def test_an_expert_with_few_tokens_is_solved_for_others_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, match: bool
) -> None:
    """Of 480 tokens 100 stand for those that are missing."""
    monkeypatch.setattr(expert_walk, "ENOUGH", 12)
    monkeypatch.setattr(expert_walk, "OTHERS", 100)
    given, x, shares = layer_inputs()
    found, upper = solved(tmp_path, recipe=Recipe(SOLVER, match_float=match)), halves(given["fc1"])
    for index in range(EXPERTS):
        own = own_tokens(shares[:, index])
        for features, name, rows in ((WIDTH, FC1, upper[index]), (INNER, FC2, given["fc2"][index])):
            others = other_tokens(own, features, len(x), 100)
            assert others.rows.tolist() == [480 * number // 100 for number in range(100)]
            read = x[np.concatenate([own.rows, others.rows])]
            costs = np.concatenate([own.costs, others.costs])
            floats = read if name == FC1 else behind(upper[index], read)
            read = read if name == FC1 else behind(found[FC1][index], read)
            require_near(found[name][index], expected(read, costs, rows, name, floats if match else None))


def test_a_second_matrix_asks_for_no_more_others_than_are_enough(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(expert_walk, "ENOUGH", 5)
    given, x, shares = layer_inputs()
    found = solved(tmp_path)
    for index in range(EXPERTS):
        own = own_tokens(shares[:, index])
        others = other_tokens(own, INNER, len(x), 5 * INNER)
        assert len(others.rows) == (0 if len(own.rows) >= 5 * INNER else 5 * INNER)
        read = behind(found[FC1][index], x[np.concatenate([own.rows, others.rows])])
        costs = np.concatenate([own.costs, others.costs])
        require_near(found[FC2][index], expected(read, costs, given["fc2"][index], FC2))


@pytest.mark.parametrize("match", [False, True])
def test_the_numbers_depend_neither_on_threads_nor_on_who_works_side_by_side(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, match: bool
) -> None:
    recipe = Recipe(match_float=match)
    results = [solved(tmp_path / str(threads), threads=threads, recipe=recipe) for threads in (1, 2, 3)]
    # One after the other, each by all threads; and one expert's weights in memory at a time.
    monkeypatch.setattr(expert_walk, "ROOM", 1)
    monkeypatch.setattr(expert_walk, "WEIGHTS", 1)
    results.append(solved(tmp_path / "one", threads=3, recipe=recipe))
    for other in results[1:]:
        for name, values in results[0].items():
            assert values.tobytes() == other[name].tobytes()


def test_tokens_that_come_in_parts_are_summed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = solved(tmp_path / "whole")
    monkeypatch.setattr(expert_walk, "TOGETHER", 50)
    for name, values in solved(tmp_path / "parts").items():
        require_near(values, whole[name])


@pytest.mark.parametrize("count", [0, 1, 4, 7])
def test_a_walk_that_was_killed_among_experts_goes_on_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: int
) -> None:
    whole = solved(tmp_path / "whole", threads=1)
    original = SolvedStore.write
    monkeypatch.setattr(SolvedStore, "write", killed_at(count, original))
    with pytest.raises(Killed):
        solved(tmp_path / "killed", threads=1)
    written: list[str] = []

    def noted(store: SolvedStore, site: str, *rest: Any) -> Stored:
        written.append(site)
        return original(store, site, *rest)

    monkeypatch.setattr(SolvedStore, "write", noted)
    again = solved(tmp_path / "killed", threads=1)
    order = [f"{name}[{index}]" for index in range(EXPERTS) for name in (FC1, FC2)]
    assert written == [*order[count:], HEAD]
    assert {name: values.tobytes() for name, values in again.items()} == {
        name: values.tobytes() for name, values in whole.items()
    }


def test_a_walk_that_was_killed_while_it_adds_experts_up_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What is half added up is thrown away."""
    whole = solved(tmp_path / "whole", threads=1)
    monkeypatch.setattr(expert_walk, "WEIGHTS", 1)
    run_layer = expert_walk.ExpertWalk.products
    monkeypatch.setattr(expert_walk.ExpertWalk, "products", killed_at(2, run_layer))
    with pytest.raises(Killed):
        solved(tmp_path / "killed", threads=1)
    monkeypatch.setattr(expert_walk.ExpertWalk, "products", run_layer)
    for name, values in solved(tmp_path / "killed", threads=1).items():
        assert values.tobytes() == whole[name].tobytes()


def test_an_expert_whose_solved_numbers_are_wrong_is_named_and_rounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One percent in one matrix of one expert."""
    solve, calls = FactoredMoments.solve, itertools.count()

    def faulty(moments: FactoredMoments, *arguments: Any, **named: Any) -> Any:
        numbers = solve(moments, *arguments, **named)
        if next(calls) == 3:
            numbers.scales[:] *= 1.02
        return numbers

    monkeypatch.setattr(FactoredMoments, "solve", faulty)
    found = solved(tmp_path, threads=1)
    warnings = [record.getMessage() for record in caplog.records]
    assert len(warnings) == 1
    assert warnings[0].startswith(f"{FC2}[1] is rounded, since the numbers that were solved for it are wrong: ")
    rounded = RoundToNearest().solve(weights()["fc2"][1], None, scheme(FC2))
    assert np.array_equal(found[FC2][1], dequantize(rounded, scheme(FC2), INNER))


def test_what_is_written_is_what_was_solved(tmp_path: Path) -> None:
    """The experts' operator computes with these numbers."""
    model, feeds = expert_model(), graph_feeds(tokens(1, 30))
    with calibrated(request(), tmp_path, NO_PROGRESS) as solvers:
        stacks = {name: values_of(name, solvers[name]) for name in (FC1, FC2)}
        numbers = QuantizeWeights({"experts": PLAN["experts"]}, accuracy_level=0, solvers=solvers)
        numbers(model)
        assert "QMoE" in {node.op_type for node in model.graph}
        found = run(model, feeds)["logits"]
    floats = expert_model()
    for stack, initializer in ((FC1, f"{FC1}.by_output"), (FC2, FC2)):
        floats.graph.initializers[initializer].const_value = ir.tensor(stacks[stack], name=initializer)
    np.testing.assert_allclose(found, run(floats, feeds)["logits"], rtol=2e-3, atol=2e-3)


def divergence(found: Array, exact: Array) -> float:
    """Mean KL of the softmax over the last axis."""
    p, q = (x - x.max(-1, keepdims=True) for x in (exact, found))
    p, q = (x - np.log(np.exp(x).sum(-1, keepdims=True)) for x in (p, q))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


def test_calibrated_experts_lose_much_less_than_rounded_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On tokens of the vocabulary that the text did not have; everything else keeps its floats."""
    monkeypatch.undo()
    seen, unseen = tokens(16, 64, 0, 256), graph_feeds(tokens(4, 64, 256, 512))
    exact, plan = run(expert_model(), unseen)["logits"], {"experts": "int4-zero@32"}
    rounded = expert_model()
    QuantizeWeights(plan, accuracy_level=0)(rounded)
    lost = divergence(run(rounded, unseen)["logits"], exact)
    with calibrated(request(plan=plan, windows=seen), tmp_path, NO_PROGRESS) as solvers:
        model = expert_model()
        QuantizeWeights(plan, accuracy_level=0, solvers=solvers)(model)
        assert divergence(run(model, unseen)["logits"], exact) < 0.5 * lost
