"""Running passes: records, dumps, errors, the order."""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import PassRecord
from llmc.compiler.artifact.reports import PassOutcome
from llmc.compiler.base.contract import Contract, ContractPart
from llmc.compiler.base.errors import PassError, UsageError
from llmc.compiler.graph.census import stored_bytes
from llmc.compiler.graph.lazy_weight import TensorWeight
from llmc.passes import runner as module
from llmc.passes.graph_pass import FusionPass, GraphPass, NearMiss, Tally
from llmc.passes.pipeline import GraphRequest, cpu_passes, portable_passes
from llmc.passes.quantization.quantize_weights import QuantizeWeights
from llmc.passes.runner import dump_graph, merge_contract, run_passes, snake_case

from .plans import in_blocks


def small_model():
    x = ir.val("x", ir.DataType.FLOAT, ["n", 512])
    weight = ir.val("w", const_value=ir.tensor(np.ones((512, 4), np.float32), name="w"))
    product = ir.node("MatMul", [x, weight], name="product")
    result = ir.node("Relu", [product.outputs[0]], name="relu")
    result.outputs[0].name, result.outputs[0].dtype, result.outputs[0].shape = (
        "y",
        ir.DataType.FLOAT,
        ir.Shape(["n", 4]),
    )
    graph = ir.Graph(
        [x], [result.outputs[0]], nodes=[product, result], initializers=[weight], opset_imports={"": 23}, name="g"
    )
    return ir.Model(graph, ir_version=10)


@dataclass(frozen=True)
class DropRelu(GraphPass):
    """Replaces Relu by Identity."""

    strength: int = 3

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        for node in model.graph:
            if node.op_type == "Relu":
                node.op_type = "Identity"
                tally.count("relu")


@dataclass(frozen=True)
class NeverFits(FusionPass):
    """Looks at every node and refuses."""

    what = "nothing"

    def sites(self, model: ir.Model) -> list[ir.Node]:
        return list(model.graph)

    def fuse(self, model: ir.Model, node: ir.Node) -> None:
        raise NearMiss(f"{node.op_type} is not what it wants")


@dataclass(frozen=True)
class States(GraphPass):
    """Says what its graph has become."""

    part: ContractPart

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        tally.state(**self.part)


@dataclass(frozen=True)
class Breaks(GraphPass):
    """Raises."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        raise KeyError("lost")


def test_a_record_says_what_happened():
    model = small_model()
    (outcome,) = run_passes(model, [DropRelu(strength=5)])
    record = outcome.record
    assert (record.name, dict(record.fields)) == ("DropRelu", {"strength": 5})
    assert record.modified
    assert dict(record.counts) == {"relu": 1}
    assert (record.nodes_before, record.nodes_after) == (2, 2)
    assert record.bytes_before == record.bytes_after == 512 * 4 * 4
    assert outcome.milliseconds >= 0
    (again,) = run_passes(model, [DropRelu()])
    assert not again.record.modified


def test_what_passes_state_of_their_graph_is_merged_in_order():
    before = Contract(logits="last", cache="shared")
    first, last = States({"rows": "slot0", "ragged_chunks": False}), States({"ragged_chunks": True, "cache": "grow"})
    outcomes = run_passes(small_model(), [first, DropRelu(), last])
    assert merge_contract(before, outcomes) == Contract(rows="slot0", logits="last")
    assert merge_contract(before, []) == before


@dataclass(frozen=True)
class Shrinks(GraphPass):
    """Drops the last node and halves the weight; expected to do more."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        product, relu = model.graph
        relu.outputs[0].replace_all_uses_with(product.outputs[0], replace_graph_outputs=True)
        model.graph.remove(relu, safe=True)
        model.graph.initializers["w"].const_value = ir.tensor(np.ones((512, 2), np.float32), name="w")
        tally.count("halves", 2)
        tally.expected["halves"] = 5


@dataclass(frozen=True)
class Refuses(GraphPass):
    """Raises an error that says what to do."""

    def rewrite(self, model: ir.Model, tally: Tally) -> None:
        raise UsageError("give --precision fp32")


class Steps:
    """Progress that is written down."""

    def __init__(self):
        self.said = []

    def start(self, stage, total=None, unit=""):
        self.said.append((stage, total, unit))

    def advance(self, done):
        self.said.append(done)


def test_a_record_says_what_the_pass_left():
    (outcome,) = run_passes(small_model(), [Shrinks()])
    record = outcome.record
    assert (record.nodes_before, record.nodes_after) == (2, 1)
    assert (record.bytes_before, record.bytes_after) == (512 * 4 * 4, 512 * 2 * 4)
    assert (dict(record.counts), dict(record.expected)) == ({"halves": 2}, {"halves": 5})
    assert outcome.shortfalls == ("Shrinks: halves fired 2 of 5 times; no place looked like it",)


def test_the_time_is_in_milliseconds(monkeypatch):
    clock = iter([10.0, 10.25])
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    (outcome,) = run_passes(small_model(), [DropRelu()])
    assert outcome.milliseconds == 250


def test_progress_counts_the_passes_that_are_done():
    steps = Steps()
    run_passes(small_model(), [DropRelu(), NeverFits()], progress=steps)
    assert steps.said == [("Optimizing", 2, "passes"), 1, 2]


class Watcher:
    """An observer that writes down what it is told."""

    def __init__(self):
        self.told = []

    def begin(self, model):
        self.told.append([node.op_type for node in model.graph])

    def passed(self, model, graph_pass, outcome):
        self.told.append((type(graph_pass), outcome.record.name, [node.op_type for node in model.graph]))


def test_an_observer_sees_the_graph_before_and_after_each_pass():
    watcher, steps = Watcher(), Steps()
    run_passes(small_model(), [NeverFits(), DropRelu()], observer=watcher, progress=steps)
    whole = ["MatMul", "Relu"]
    assert watcher.told == [whole, (NeverFits, "NeverFits", whole), (DropRelu, "DropRelu", ["MatMul", "Identity"])]
    assert steps.said[0] == ("Optimizing and measuring", 2, "passes")


def test_near_misses_are_told_where_a_log_is_read(caplog):
    with caplog.at_level(logging.INFO):
        run_passes(small_model(), [NeverFits()])
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("INFO", "NeverFits left product alone: MatMul is not what it wants"),
        ("INFO", "NeverFits left relu alone: Relu is not what it wants"),
    ]


def test_an_error_that_says_what_to_do_is_passed_on():
    with pytest.raises(UsageError, match=r"^give --precision fp32$"):
        run_passes(small_model(), [DropRelu(), Refuses()])


def test_a_pass_that_fails_first_has_none_before_it():
    with pytest.raises(PassError, match=r"^Breaks failed: 'lost'$"):
        run_passes(small_model(), [Breaks()])


def test_the_same_bytes_under_two_names_count_once():
    model = small_model()
    stored = model.graph.initializers["w"].const_value
    for name in ("first", "second"):
        lazy = TensorWeight(stored, ir.DataType.FLOAT, transposed=True)
        model.graph.register_initializer(ir.val(name, const_value=lazy))
    assert stored_bytes(model.graph) == 2 * 512 * 4 * 4
    model.graph.register_initializer(ir.val("third", const_value=stored))
    assert stored_bytes(model.graph) == 2 * 512 * 4 * 4


def test_shortfalls_name_node_and_condition():
    (outcome,) = run_passes(small_model(), [NeverFits()])
    assert outcome.shortfalls == (
        "NeverFits: nothing fired 0 of 2 times; product: MatMul is not what it wants",
        "NeverFits: nothing fired 0 of 2 times; relu: Relu is not what it wants",
    )


def test_a_shortfall_without_a_reason_is_not_silent():
    record = PassRecord("P", {}, False, {"x": 1}, {"x": 2}, 1, 1, 1, 1)
    assert PassOutcome(record, (), 0.0).shortfalls == ("P: x fired 1 of 2 times; no place looked like it",)


def test_a_failing_pass_is_named_with_those_before_it():
    with pytest.raises(PassError, match=r"Breaks failed after DropRelu: 'lost'"):
        run_passes(small_model(), [DropRelu(), Breaks()])


def test_dumps_are_numbered_and_carry_no_weights(tmp_path):
    model = small_model()
    model.graph.register_initializer(ir.val("limit", const_value=ir.tensor(np.ones(256, np.float32), name="limit")))
    folder = tmp_path / "a" / "dump"
    run_passes(model, [DropRelu(), NeverFits()], dump=folder)
    files = sorted(path.name for path in folder.iterdir())
    assert files == ["00_drop_relu.onnx", "01_never_fits.onnx"]
    graph = onnx.load(folder / files[0], load_external_data=False).graph
    assert {tensor.name: bool(tensor.external_data) for tensor in graph.initializer} == {"w": True, "limit": False}
    assert list(graph.initializer[0].dims) == [512, 4]
    assert [node.op_type for node in graph.node] == ["MatMul", "Identity"]
    assert (folder / files[0]).stat().st_size < 3000
    assert model.graph.initializers["w"].const_value.numpy().sum() == 512 * 4


def test_a_folder_for_dumps_that_cannot_be_made_is_told_before_anything_runs(tmp_path):
    (tmp_path / "file").write_text("mine")
    for folder in (tmp_path / "file", tmp_path / "file" / "dump"):
        with pytest.raises(UsageError, match=r"--dump .* cannot be made .*; name another folder"):
            run_passes(small_model(), [DropRelu()], dump=folder)
    assert (tmp_path / "file").read_text() == "mine"


def test_a_dump_that_fails_puts_the_weights_back(tmp_path):
    model = small_model()
    with pytest.raises(OSError, match="no-such-directory"):
        dump_graph(model, tmp_path / "no-such-directory" / "x.onnx")
    assert stored_bytes(model.graph) == 512 * 4 * 4
    assert model.graph.initializers["w"].const_value.numpy().shape == (512, 4)


@pytest.mark.parametrize(
    ("name", "expected"), [("PackQKV", "pack_qkv"), ("FuseQKNorm", "fuse_qk_norm"), ("SetCacheIO", "set_cache_io")]
)
def test_snake_case(name, expected):
    assert snake_case(name) == expected


def names(passes):
    return [type(item).__name__ for item in passes]


def test_the_order_for_the_cpu():
    order = names(cpu_passes(GraphRequest(max_positions=64, quantization=in_blocks())))
    positions = {name: order.index(name) for name in order}
    assert positions["FuseRotary"] < positions["FuseQKNorm"] < positions["PackQKV"] < positions["LowerAttention"]
    assert positions["LowerAttention"] < positions["SetCacheIO"] < positions["QuantizeWeights"]
    # What packing leaves behind is gone before weights are quantized.
    assert order[positions["QuantizeWeights"] - 1] == "RemoveDeadCode"
    assert order[-2:] == ["RemoveDeadCode", "UniqueNodeNames"]


def test_options_change_the_passes():
    assert "QuantizeWeights" not in names(cpu_passes(GraphRequest(max_positions=64)))
    assert "LastTokenLogits" not in names(cpu_passes(GraphRequest(max_positions=64, logits="all")))
    assert names(portable_passes())[-1] == "AttachBodies"


@pytest.mark.parametrize("plan", [{"linear": "int3"}, {"head": "int5@32"}, {"linear": "int4@24"}, {"head": "int8@8"}])
def test_impossible_quantization_is_refused(plan):
    with pytest.raises(UsageError):
        QuantizeWeights(plan)
