"""What a value may be off by, for what a pass may cost."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.contract import Contract
from llmc.compiler.ledger.culprit import Limits, find_culprit
from llmc.compiler.ledger.node_comparison import Deviation, Side
from llmc.compiler.ledger.weight_files import WeightFiles
from llmc.passes.graph_pass import Loss

from .planted import Change, attribute, scaled_weight

SURE = 1e-5
TOKENS = np.arange(3, 15)


def off(gain: float, error: float = 1e-6, gain_error: float = SURE) -> Deviation:
    return Deviation("value", error, gain, gain_error)


@pytest.mark.parametrize(
    ("item", "holds"),
    [(off(0, 3e-6), True), (off(0, 2e-4), False), (off(2e-4, 5e-5), False), (off(math.inf, math.inf), False)],
)
def test_another_order_of_sums_moves_little(item: Deviation, holds: bool) -> None:
    assert Limits.of(Loss.ROUNDING, [off(0.5)] * 9).hold(item) == holds


@pytest.mark.parametrize(
    ("item", "holds"),
    [(off(1e-3, 0.013), True), (off(0.01, 0.013), False), (off(0, 0.2), False), (off(math.nan, math.nan), False)],
)
def test_half_precision_errs_to_both_sides(item: Deviation, holds: bool) -> None:
    assert Limits.of(Loss.FLOATS, [off(1e-5 * sign) for sign in (-1, 1, -1, 1)]).hold(item) == holds


def test_numbers_of_few_bits_have_a_gain_in_common() -> None:
    """Rounding in symmetric blocks makes all products a little smaller."""
    gains = [-0.03, -0.031, -0.029, -0.03, -0.0305]
    limits = Limits.of(Loss.NUMBERS, [*map(off, gains), off(0.0)])
    assert limits.usual == pytest.approx(-0.03)
    assert limits.hold(off(-0.03, error=0.5))
    assert not limits.hold(off(-0.02, error=0.5))
    assert not limits.hold(off(0, error=0.5))
    assert not limits.hold(off(0, error=1e-9))


@pytest.mark.parametrize(("item", "holds"), [(off(-0.6, error=9.0), True), (off(math.inf, math.inf), False)])
def test_calibrated_numbers_may_be_far_from_their_weights(item: Deviation, holds: bool) -> None:
    assert Limits.of(Loss.CALIBRATED, [off(0.1)] * 9).hold(item) == holds


def test_few_gains_have_none_in_common() -> None:
    """One product was quantized, or two."""
    limits = Limits.of(Loss.NUMBERS, [off(0.01), off(0.0), off(0.011), off(0.0)])
    assert limits == Limits(math.inf, 4e-3)
    assert not limits.hold(off(0.01))


def test_what_did_not_change_holds_whatever_others_did() -> None:
    assert Limits.of(Loss.NUMBERS, [off(-0.03)] * 9).hold(off(0, error=0))


def test_gains_that_are_spread_say_less() -> None:
    limits = Limits.of(Loss.NUMBERS, [off(gain) for gain in (-0.01, -0.005, 0.005, 0.01)])
    assert limits.hold(off(0.02))
    assert not limits.hold(off(0.2))


def test_a_gain_that_may_be_chance_holds() -> None:
    limits = Limits.of(Loss.NUMBERS, [off(1e-4), off(-1e-4)] * 3)
    assert limits.hold(off(0.01, gain_error=2e-3))
    assert not limits.hold(off(0.01, gain_error=1e-3))


def culprit(portable: Path, manifest: Manifest, folder: Path, *changes: Change, loss: Loss = Loss.ROUNDING):
    model, files = ir.load(portable / "model.onnx"), WeightFiles(folder)
    before = Side(files.copy(model), manifest.contract)
    for change in changes:
        change(model)
    return find_culprit(before, Side(files.copy(model), manifest.contract), TOKENS, loss)


def test_the_first_of_several_is_named(portable: Path, manifest: Manifest, tmp_path: Path) -> None:
    first = "model.layers.0.self_attn.o_proj/MatMul"
    second = attribute("model.layers.1.self_attn/CachedAttention", "scale")
    found = culprit(portable, manifest, tmp_path, second, scaled_weight(first))
    assert found is not None
    assert found.nodes == (first,)
    assert found.deviation.gain == pytest.approx(0.01, rel=1e-3)
    assert [[node.name for node in part.graph] for part in found.parts] == [[first], [first]]


def test_nobody_is_named_where_nothing_is_wrong(portable: Path, manifest: Manifest, tmp_path: Path) -> None:
    for loss in Loss:
        assert culprit(portable, manifest, tmp_path / loss.name, loss=loss) is None


TIED = """<ir_version: 10, opset_import: ["" : 23]>
tied (int64[batch, sequence] input_ids) => (float[batch, sequence, 16] logits)
<float[1] w = {0}, float[1] turned = {0}>
{ h = Gather(w, input_ids)
  r = Relu(h)
  BODY }"""


def tied(body: str) -> Side:
    """A table that is the head, too."""
    model = ir.from_onnx_text(TIED.replace("BODY", body))
    table = np.random.default_rng(0).standard_normal((16, 16)).astype(np.float32)
    for name, array in (("w", table), ("turned", np.ascontiguousarray(table.T))):
        value = model.graph.initializers[name]
        value.const_value, value.shape = ir.tensor(array, name=name), ir.Shape(array.shape)
    return Side(model, Contract())


@pytest.mark.parametrize(
    "after",
    [
        "t = Transpose <perm = [1, 0]> (w) s = Identity(r) logits = MatMul(s, turned)",
        "t = Transpose <perm = [1, 0]> (w) s = Identity(r) logits = MatMul(r, t)",
    ],
    ids=["a table that is no longer turned", "a value that is no longer read"],
)
def test_random_numbers_do_not_contradict_each_other(after: str) -> None:
    """What the one graph reads and the other does not is no place to put them."""
    before = tied("t = Transpose <perm = [1, 0]> (w) s = Identity(r) logits = MatMul(s, t)")
    assert find_culprit(before, tied(after), TOKENS, Loss.NUMBERS) is None


def test_a_body_that_changed_has_its_call_for_a_node(portable: Path, manifest: Manifest, tmp_path: Path) -> None:
    """The call is as it was."""

    def body(model: ir.Model) -> None:
        function = next(item for key, item in model.functions.items() if key[1] == "CachedAttention")
        softmax = next(node for node in function if node.op_type == "Softmax")
        doubled = ir.node("Add", [softmax.outputs[0], softmax.outputs[0]])
        softmax.outputs[0].replace_all_uses_with(doubled.outputs[0])
        doubled.replace_input_with(0, softmax.outputs[0])
        doubled.replace_input_with(1, softmax.outputs[0])
        function.graph.insert_after(softmax, [doubled])

    found = culprit(portable, manifest, tmp_path, body)
    assert found is not None
    assert found.nodes == ("model.layers.0.self_attn/CachedAttention",)
