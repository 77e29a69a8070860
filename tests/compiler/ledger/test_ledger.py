"""Whole lists of passes: nothing is found where nothing is wrong, and one percent is, with pass and node."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import EngineError
from llmc.compiler.graph.lazy_weight import LazyWeight
from llmc.compiler.graph.quantized_weight import QuantizedWeight
from llmc.compiler.ledger import ledger as ledger_module
from llmc.compiler.ledger.ledger import Ledger
from llmc.compiler.ledger.probes import Probes
from llmc.compiler.quantization.scheme import Scheme
from llmc.compiler.quantization.solver import Solved, Solver
from llmc.passes.fusion.fuse_rotary import FuseRotary
from llmc.passes.fusion.fuse_skip_norm import FuseSkipNorm
from llmc.passes.fusion.pack_qkv import PackQKV
from llmc.passes.graph_pass import GraphPass, Loss, Tally
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.quantization.emission import Emission
from llmc.passes.quantization.quantize_weights import QuantizeWeights

from .planted import FACTOR, Change, Planted, attribute, node_of, scaled_weight
from .solved import larger, solved_passes, swapped

Kept = Callable[[Sequence[GraphPass]], Ledger]
Passes = Callable[..., list[GraphPass]]
LAYER = "model.layers.1"


def before(passes: Sequence[GraphPass], kind: type[GraphPass], *more: GraphPass) -> list[GraphPass]:
    """The list with more passes before the first of a kind."""
    place = next(index for index, item in enumerate(passes) if isinstance(item, kind))
    return [*passes[:place], *more, *passes[place:]]


@pytest.mark.parametrize(
    "options",
    [
        {"precision": "fp32"},
        {"precision": "fp32", "cache": "grow", "logits": "all"},
        {"precision": "int8"},
        {"precision": "int4"},
        {"target": "cuda", "precision": "fp16"},
        {"target": "cuda", "precision": "int4"},
        {"target": "tensorrt", "precision": "fp16"},
        {"target": "openvino", "precision": "int4"},
    ],
    ids=lambda options: "-".join(options.values()),
)
def test_nothing_is_found_where_nothing_is_wrong(keep: Kept, passes_for: Passes, options: dict[str, Any]) -> None:
    passes = passes_for(**options)
    ledger = keep(passes)
    assert ledger.findings == []
    assert [entry.name for entry in ledger.entries] == [type(item).__name__ for item in passes]
    assert not any(entry.unmeasured for entry in ledger.entries)
    exact = [entry.step for entry in ledger.entries if entry.declared == Loss.ROUNDING]
    assert 0 < max(exact) < 1e-4
    lossy = [entry for entry in ledger.entries if entry.declared != Loss.ROUNDING and entry.step]
    assert bool(lossy) == (options["precision"] != "fp32")
    assert ledger.entries[-1].kl < (1e-9 if not lossy else 0.1)


PLANTS: list[tuple[type[GraphPass], Change, str]] = [
    (FuseRotary, scaled_weight(f"{LAYER}.mlp.down_proj/MatMul"), f"{LAYER}.mlp.down_proj/MatMul"),
    (FuseRotary, scaled_weight(f"{LAYER}.self_attn.q_proj/MatMul"), f"{LAYER}.self_attn.q_proj/MatMul"),
    (PackQKV, attribute(f"{LAYER}.self_attn/CachedAttention", "scale"), f"{LAYER}.self_attn/CachedAttention"),
    (PackQKV, attribute("model.norm/RMSNormalization", "epsilon", 1e5), "model.norm/RMSNormalization"),
    (
        FuseSkipNorm,
        scaled_weight(f"{LAYER}.post_attention_layernorm/RMSNormalization"),
        f"{LAYER}.post_attention_layernorm/RMSNormalization",
    ),
    (LowerAttention, scaled_weight("lm_head/MatMul"), "lm_head/MatMul"),
]


@pytest.mark.parametrize(
    ("kind", "change", "node"), PLANTS, ids=[f"{kind.__name__}-{node}" for kind, _, node in PLANTS]
)
def test_a_planted_percent_is_named(
    keep: Kept, passes_for: Passes, kind: type[GraphPass], change: Change, node: str
) -> None:
    passes = before(passes_for(precision="fp32"), kind, Planted(change))
    ledger = keep(passes)
    (finding,) = ledger.findings
    place = next(index for index, item in enumerate(passes) if isinstance(item, Planted))
    assert (finding.place, finding.passes, finding.nodes) == (place, ("Planted",), (node,))
    assert finding.sentence.startswith("Planted: declared as 'exact up to rounding', it moved a logit by ")
    assert finding.sentence.endswith(f", at {node}")
    reproduce(Path(finding.reproduction))


def reproduce(folder: Path, code: int = 1) -> str:
    """Run the script where nothing but onnxruntime and NumPy can be imported; what it says."""
    blocked = "import sys\nfor name in ('onnx', 'onnx_ir', 'llmc', 'torch', 'ml_dtypes'): sys.modules[name] = None\n"
    run = f"import runpy; runpy.run_path({str(folder / 'repro.py')!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", blocked + run], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    return done.stdout


# --- faults inside a pass -------------------------------------------------------------------------------------------


def fault_in(monkeypatch: pytest.MonkeyPatch, kind: type[GraphPass], change: Change) -> None:
    """A pass does what it does, and changes something afterwards."""
    rewrite = kind.rewrite

    def wrong(self: GraphPass, model: ir.Model, tally: Tally) -> None:
        rewrite(self, model, tally)
        if tally.fired:
            change(model)

    monkeypatch.setattr(kind, "rewrite", wrong)


def test_a_percent_in_a_packed_weight(keep: Kept, passes_for: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    """The products of q, k and v are one after the pass, and what reads it is another attention."""
    node = f"{LAYER}.self_attn.qkv_proj/MatMul"
    fault_in(monkeypatch, PackQKV, scaled_weight(node))
    (finding,) = keep(passes_for(precision="fp32")).findings
    assert (finding.passes, finding.nodes) == (("PackQKV",), (node, f"{LAYER}.self_attn/CachedAttention"))
    assert finding.sentence.endswith(f", between {node}, {LAYER}.self_attn/CachedAttention")
    reproduce(Path(finding.reproduction))


def test_a_percent_in_a_fused_norm(keep: Kept, passes_for: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    node = f"{LAYER}.post_attention_layernorm/RMSNormalization"
    fault_in(monkeypatch, FuseSkipNorm, scaled_weight(node, 2))
    (finding,) = keep(passes_for(precision="fp32")).findings
    assert (finding.passes, finding.nodes) == (("FuseSkipNorm",), (node,))
    assert "gain +1.0000%" in reproduce(Path(finding.reproduction))


def test_a_percent_in_a_lowered_attention(keep: Kept, passes_for: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    node = f"{LAYER}.self_attn/CachedAttention"
    fault_in(monkeypatch, LowerAttention, attribute(node, "scale"))
    (finding,) = keep(passes_for(precision="fp32")).findings
    assert finding.passes == ("LowerAttention",)
    assert node in finding.nodes
    assert not any("layers.0" in name for name in finding.nodes)


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (QuantizeWeights, {"precision": "int4"}),
        (QuantizeWeights, {"precision": "int8"}),
        (ConvertFloat, {"target": "cuda", "precision": "fp16"}),
    ],
    ids=["int4", "int8", "cuda-fp16"],
)
@pytest.mark.parametrize("sizes", [{"hidden_size": 256, "intermediate_size": 512}])
def test_a_percent_in_a_pass_that_costs_something(
    keep: Kept, passes_for: Passes, monkeypatch: pytest.MonkeyPatch, kind: type[GraphPass], options: dict[str, Any]
) -> None:
    """Far below what the pass costs by right; it shows in one product's gain."""
    node = f"{LAYER}.mlp.down_proj/MatMul"
    index = 1 if kind is ConvertFloat else 2
    fault_in(monkeypatch, kind, scaled_weight(node, index))
    (finding,) = keep(passes_for(**options)).findings
    assert finding.passes == (kind.__name__,)
    assert node in finding.nodes
    assert all(name.startswith(node) for name in finding.nodes)
    reproduce(Path(finding.reproduction))


# --- numbers that were solved for a text ----------------------------------------------------------------------------

SOLVED = [{"precision": "int4"}, {"target": "cuda", "precision": "int4"}, {"target": "openvino", "precision": "int4"}]
DOWN = f"{LAYER}.mlp.down_proj"


def texts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random tokens count as texts like those that numbers were solved for."""
    of = Probes.of
    monkeypatch.setattr(Probes, "of", lambda *given: replace(of(*given), random=False))


@pytest.mark.parametrize("options", SOLVED, ids=lambda options: "-".join(options.values()))
def test_solved_numbers_are_as_good_as_they_say(
    keep: Kept, passes_for: Passes, portable: Path, tmp_path: Path, options: dict[str, Any]
) -> None:
    _, _, passes = solved_passes(portable, passes_for(**options), tmp_path)
    ledger = keep(passes)
    assert ledger.findings == []
    assert [entry.declared for entry in ledger.entries if entry.name == "QuantizeWeights"] == [Loss.CALIBRATED]


@dataclass(frozen=True)
class Changed:
    """A solver whose numbers are not those that are said to be stored."""

    solver: Solver
    change: Callable[[Solved], Solved]

    def needs_layer(self, scheme: Scheme) -> bool:
        return True

    def solve(self, rows: np.ndarray, seen: object, scheme: Scheme) -> Solved:
        return self.change(self.solver.solve(rows, None, scheme))


@pytest.mark.parametrize("change", [larger, swapped])
@pytest.mark.parametrize("options", SOLVED, ids=lambda options: "-".join(options.values()))
def test_a_node_that_does_not_compute_with_its_solved_numbers(
    keep: Kept,
    passes_for: Passes,
    portable: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: dict[str, Any],
    change: Callable[[Solved], Solved],
) -> None:
    """One percent in one layer, or the scales of two blocks of one row, between the numbers and the graph."""
    _, _, passes = solved_passes(portable, passes_for(**options), tmp_path)
    quantized = Emission.quantized

    def wrong(self: Emission, name: str, weight: LazyWeight, scheme: Scheme) -> QuantizedWeight:
        right = quantized(self, name, weight, scheme)
        return replace(right, solver=Changed(right.solver, change)) if name == DOWN else right

    monkeypatch.setattr(Emission, "quantized", wrong)
    (finding,) = keep(passes).findings
    assert finding.passes == ("QuantizeWeights",)
    assert f"{DOWN}/MatMul" in finding.nodes
    assert all(DOWN in name for name in finding.nodes), finding.nodes
    assert "does not compute what its numbers stand for" in finding.sentence
    reproduce(Path(finding.reproduction))


def test_solved_numbers_may_not_lose_more_than_rounded_ones(
    keep: Kept, passes_for: Passes, portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts(monkeypatch)
    half = (DOWN, lambda numbers: replace(numbers, row_scales=numbers.row_scales / 2))
    _, _, passes = solved_passes(portable, passes_for(precision="int4"), tmp_path, fault=half)
    (finding,) = keep(passes).findings
    assert (finding.passes, finding.nodes) == (("QuantizeWeights",), (f"{DOWN}/MatMul",))
    assert "it lost more than rounding does (KL " in finding.sentence
    reproduce(Path(finding.reproduction))


def test_random_tokens_say_nothing_of_what_a_text_was_solved_for(
    keep: Kept, passes_for: Passes, portable: Path, tmp_path: Path
) -> None:
    half = (DOWN, lambda numbers: replace(numbers, row_scales=numbers.row_scales / 2))
    assert keep(solved_passes(portable, passes_for(precision="int4"), tmp_path, fault=half)[2]).findings == []


# --- what runs nowhere ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Rename(GraphPass):
    """Calls every operator of one type by another name."""

    old: str
    new: str

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        for node in model.graph:
            if node.op_type == self.old:
                node.op_type = self.new
                tally.count("renamed")


def test_a_graph_that_does_not_run_is_passed_over(keep: Kept) -> None:
    """What comes after it is compared with the last that ran."""
    planted = Planted(scaled_weight("lm_head/MatMul"))
    ledger = keep([Rename("MatMul", "NoSuchProduct"), planted, Rename("NoSuchProduct", "MatMul")])
    first, second, third = ledger.entries
    assert "NoSuchProduct" in first.unmeasured
    assert second.unmeasured
    assert third.step > 0
    (finding,) = ledger.findings
    assert (finding.place, finding.passes) == (2, ("Rename", "Planted", "Rename"))
    assert finding.nodes == ("lm_head/MatMul",)


def test_passes_cannot_be_measured_where_the_first_graph_does_not_run(
    keep: Kept, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(model: ir.Model) -> None:
        raise EngineError("no kernel")

    monkeypatch.setattr("llmc.compiler.ledger.ledger.load_graph", refuse)
    with pytest.raises(EngineError, match=r"no kernel.*--dtype fp32"):
        keep([])


def test_a_pass_that_changes_nothing_runs_nothing(keep: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[object] = []
    logits = Ledger._logits
    monkeypatch.setattr(Ledger, "_logits", lambda self, side: (runs.append(side), logits(self, side))[1])
    ledger = keep([Planted(scaled_weight("lm_head/MatMul")), Planted(lambda model: None)])
    assert len(runs) == 2
    assert ledger.entries[1].step == 0
    assert ledger.entries[1].logit_error == ledger.entries[0].logit_error > 0


def test_reproductions_are_moved(keep: Kept, tmp_path: Path) -> None:
    ledger = keep([Planted(scaled_weight("lm_head/MatMul"))])
    report = ledger.publish(tmp_path / "out.repro")
    assert report.findings[0].reproduction == str(tmp_path / "out.repro" / "00_planted")
    assert "lm_head/MatMul" in reproduce(tmp_path / "out.repro" / "00_planted")


def test_a_fault_that_one_text_alone_shows(keep: Kept, manifest: Manifest) -> None:
    """A row of the table that no longer text reads."""
    first, *others = sorted(Probes.of(None, manifest.model.vocab_size).texts, key=len)
    token = next(token for token in first if not any(token in text for text in others))

    def change(model: ir.Model) -> None:
        weight = node_of(model, "model.embed_tokens/Gather").inputs[0]
        assert weight is not None
        assert weight.const_value is not None
        table = weight.const_value.numpy().copy()
        table[token] *= FACTOR
        weight.const_value = ir.tensor(table, name=weight.name)

    (finding,) = keep([Planted(change)]).findings
    assert finding.nodes == ("model.embed_tokens/Gather",)


def test_a_fault_in_all_nodes_has_no_node(keep: Kept, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer is off by less than a node may be; together they are not."""
    monkeypatch.setitem(ledger_module.LOGITS, Loss.ROUNDING, 1e-6)

    def drift(model: ir.Model) -> None:
        for layer in range(2):
            weight = node_of(model, f"model.layers.{layer}.mlp.down_proj/MatMul").inputs[1]
            assert weight is not None
            assert weight.const_value is not None
            weight.const_value = ir.tensor(weight.const_value.numpy() * np.float32(1 + 5e-5), name=weight.name)

    (finding,) = keep([Planted(drift)]).findings
    assert (finding.nodes, finding.reproduction) == ((), "")
    assert finding.sentence.endswith("and no node alone does that")
