"""Distances between values, and calls in which the nodes of two graphs read the same."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.ledger.node_comparison import Call, Side, compare_nodes, distance
from llmc.compiler.ledger.weight_files import WeightFiles
from llmc.passes.lowering.last_token_logits import LastTokenLogits
from llmc.passes.runner import merge_contract, run_passes

from .planted import Change, attribute, scaled_weight

TOKENS = np.arange(3, 15)
DOWN = "model.layers.0.mlp.down_proj/MatMul"


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_a_gain_is_found_in_noise():
    """The error of one element is large, and says nothing of all."""
    expected = normal(64, 256)
    error, gain, strays = distance(expected, 1.01 * expected + 0.1 * normal(64, 256, seed=1))
    assert error > 0.1
    assert gain == pytest.approx(0.01, abs=3e-3)
    assert 2e-4 < strays < 2e-3


def test_the_standard_error_is_that_of_many_draws():
    expected = normal(8, 64)
    draws = [distance(expected, expected + 0.1 * normal(8, 64, seed=seed)) for seed in range(1, 200)]
    gains = np.asarray([gain for _, gain, _ in draws])
    assert np.mean([strays for _, _, strays in draws]) == pytest.approx(gains.std(), rel=0.2)


def test_an_error_counts_in_units_of_its_element_and_of_all():
    expected = np.ones((1, 100), np.float32)
    expected[0, 0] = 1000
    small, large = expected.copy(), expected.copy()
    small[0, 5] += 1
    large[0, 0] += 1
    root = math.sqrt((1000**2 + 99) / 100)
    assert distance(expected, small)[0] == pytest.approx(1 / (1 + root))
    assert distance(expected, large)[0] == pytest.approx(1 / (1000 + root))


@pytest.mark.parametrize("masked", [-np.inf, np.finfo(np.float32).min])
def test_what_is_masked_is_left_out(masked: float):
    expected = np.asarray([[1, masked]] * 8, np.float32)
    got = np.asarray([[1, -5]] * 8, np.float32)
    assert distance(expected, got) == (0, 0, math.inf)
    assert distance(expected[:, 1:], got[:, 1:]) == (0, 0, math.inf)


def test_what_is_no_number_is_as_far_as_can_be():
    assert distance(normal(2, 8), np.full((2, 8), np.nan, np.float32)) == (math.inf, math.inf, 0)


def test_few_features_say_nothing_of_a_gain():
    assert math.isinf(distance(normal(100, 7), normal(100, 7))[2])
    assert distance(normal(100), normal(100))[1:] == (0, math.inf)


def test_values_of_other_shapes_do_not_correspond():
    """Of logits of all tokens and of the last, the last's are compared."""
    model = ir.from_onnx_text(
        '<ir_version: 10, opset_import: ["" : 23]> g (float[2] x) => (float[2] a) '
        "{ a = Relu(x) b = Relu(a) c = Relu(b) d = Relu(c) }"
    )
    whole, last = normal(1, 5, 8), normal(1, 1, 8)
    expected = {"a": whole, "b": normal(2, 8), "c": np.ones((2, 8), np.int64), "d": normal(2, 8)}
    got = {"a": last, "b": normal(8, 2), "c": np.ones((2, 8), np.int64), "d": normal(2, 8).astype(np.float16)}
    deviations = Call(({}, {}), {}, expected, got).deviations(model)
    assert [item.value for item in deviations] == ["a", "d"]
    assert deviations[0].error == distance(whole[:, -1:], last)[0]
    assert 0 < deviations[1].error < 1e-3


# --- two graphs -----------------------------------------------------------------------------------------------------


@pytest.fixture
def sides(portable: Path, manifest: Manifest, tmp_path: Path) -> Callable[[Change], tuple[Side, Side]]:
    """The portable graph as it is and changed."""

    def pair(change: Change) -> tuple[Side, Side]:
        model, files = ir.load(portable / "model.onnx"), WeightFiles(tmp_path / "weights")
        before = Side(files.copy(model), manifest.contract)
        change(model)
        return before, Side(files.copy(model), manifest.contract)

    return pair


@pytest.mark.parametrize("noise", [False, True])
def test_only_what_was_changed_deviates(sides: Callable[[Change], tuple[Side, Side]], noise: bool):
    """Although all that comes after it is fed with it; in each of the calls."""
    before, after = sides(scaled_weight(DOWN))
    calls = list(compare_nodes(before, after, TOKENS, noise=noise))
    (name,) = (node.outputs[0].name for node in after.model.graph if node.name == DOWN)
    assert [call.feeds[0]["attention_mask"].shape[1] for call in calls] == [6, 11, 12]
    for call in calls:
        off = [item for item in call.deviations(after.model) if item.error > 1e-5]
        assert [item.value for item in off] == [name]
        assert off[0].gain == pytest.approx(0.01, rel=1e-3)
        assert len(call.deviations(after.model)) > 60


def test_nodes_read_what_the_graph_before_computed(sides: Callable[[Change], tuple[Side, Side]]):
    before, after = sides(scaled_weight(DOWN))
    call = next(compare_nodes(before, after, TOKENS, noise=False))
    assert np.array_equal(call.given["embedding"], call.expected["embedding"])
    np.testing.assert_allclose(call.got["logits"], call.expected["logits"], rtol=1e-4, atol=1e-4)


def test_noise_is_as_large_as_what_it_replaces(sides: Callable[[Change], tuple[Side, Side]]):
    before, after = sides(lambda model: None)
    real, noise = (next(compare_nodes(before, after, TOKENS, noise=each)) for each in (False, True))
    for name in ("embedding", "linear_6"):
        assert not np.array_equal(real.given[name], noise.given[name])
        sizes = [np.square(call.given[name]).mean() for call in (real, noise)]
        assert sizes[1] == pytest.approx(sizes[0], rel=0.3)


def test_a_fault_of_the_cache_shows_in_a_later_call(sides: Callable[[Change], tuple[Side, Side]]):
    """Attention that looks at six tokens reads all of a first call of six."""

    def window(model: ir.Model) -> None:
        (node, *_) = (node for node in model.graph if node.op_type == "CachedAttention")
        node.attributes["window"] = ir.AttrInt64("window", 6)

    before, after = sides(window)
    worst = [
        max(item.error for item in call.deviations(after.model))
        for call in compare_nodes(before, after, TOKENS, noise=False)
    ]
    assert worst[0] < 1e-5
    assert min(worst[1:]) > 1e-2


def test_logits_of_the_last_token_alone(portable: Path, manifest: Manifest, tmp_path: Path):
    model, files = ir.load(portable / "model.onnx"), WeightFiles(tmp_path / "weights")
    before = Side(files.copy(model), manifest.contract)
    contract = merge_contract(manifest.contract, run_passes(model, [LastTokenLogits()]))
    attribute("model.layers.1.self_attn/CachedAttention", "scale")(model)
    after = Side(files.copy(model), contract)
    for call in compare_nodes(before, after, TOKENS, noise=False):
        deviations = {item.value: item.error for item in call.deviations(after.model)}
        assert deviations["logits"] < 1e-5
        assert sum(error > 1e-4 for error in deviations.values()) == 1
