"""The order of passes, and what each target is asked for reaches the pass that does it."""

from __future__ import annotations

import itertools
import re
from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.base.errors import PassError
from llmc.passes.cleanup.unique_node_names import UniqueNodeNames
from llmc.passes.fusion.fuse_rotary import FuseRotary
from llmc.passes.fusion.pack_qkv import PackQKV
from llmc.passes.graph_pass import Fact, GraphPass
from llmc.passes.lowering.convert_float import ConvertFloat
from llmc.passes.lowering.lower_attention import LowerAttention
from llmc.passes.lowering.lower_moe import LowerMoE
from llmc.passes.lowering.set_cache_io import SetCacheIO
from llmc.passes.lowering.use_standard_attention import UseStandardAttention
from llmc.passes.pipeline import (
    GraphRequest,
    cpu_engine_passes,
    cpu_passes,
    cuda_engine_passes,
    cuda_passes,
    portable_passes,
    standard_passes,
    tensorrt_engine_passes,
)
from llmc.passes.quantization.quantize_cache import QuantizeCache
from llmc.passes.runner import check_order, run_passes

from .plans import in_blocks, in_fp8, in_standard

CPU = cpu_passes(GraphRequest(64, quantization=in_blocks()))
CUDA = cuda_passes(GraphRequest(64, "fp16", quantization=in_fp8(), quantized_cache=QuantizeCache("fp8")))
SCATTER = standard_passes(GraphRequest(64, "fp16", quantization=in_standard("int8")))
CONCAT = standard_passes(GraphRequest(64, cache="grow", quantization=in_standard("int8")))
ORDERS = {"portable": portable_passes(), "cpu": CPU, "cuda": CUDA, "scatter": SCATTER, "concat": CONCAT}


def names(passes: list[GraphPass]) -> list[str]:
    return [type(item).__name__ for item in passes]


def only(passes: list[GraphPass], kind: type[Any]) -> Any:
    [found] = [item for item in passes if isinstance(item, kind)]
    return found


@pytest.mark.parametrize(
    ("target", "order"),
    [
        ("portable", "ExpandGemm FoldConstants NameGraph UsePositionIds RecognizeAttention"),
        ("portable", "RecognizeAttention SimplifyShapes AttachBodies"),
        ("portable", "NameGraph PositionsByRow RecognizeAttention"),
        ("cpu", "InlineRecurrence FoldConstants ConvertFloat FuseRotary FuseQKNorm SimplifyShapes PackQKV"),
        ("cpu", "PackQKV PackGateUp FuseSilu FuseSkipNorm LastTokenLogits LowerAttention"),
        ("cpu", "EqualHeadWidths LowerAttention LowerMoE AttachBodies SetCacheIO QuantizeWeights"),
        ("cpu", "QuantizeWeights FuseTransposedMatMul RemoveDeadCode UniqueNodeNames"),
        ("cuda", "FuseRotary FuseQKNorm SimplifyShapes PackQKV PackGateUp FuseSilu FuseGatedSilu FuseSkipNorm"),
        ("cuda", "FuseSkipNorm LastTokenLogits EqualHeadWidths LowerAttention LowerMoE SetCacheIO QuantizeCache"),
        (
            "cuda",
            "QuantizeCache QuantizeWeights FuseTransposedMatMul RemoveDeadCode UniqueNodeNames CheckCudaKernels",
        ),
        ("scatter", "InlineRecurrence LastTokenLogits EqualHeadWidths UseStandardAttention InlineBodies"),
        ("scatter", "InlineBodies SimplifyShapes FoldConstants ConvertFloat"),
        ("scatter", "SimplifyShapes SetCacheIO QuantizeWeights UniqueNodeNames"),
        ("concat", "LastTokenLogits UseStandardAttention SimplifyShapes SetCacheIO PinAngleWidth QuantizeWeights"),
    ],
)
def test_what_comes_before_what(target: str, order: str) -> None:
    """By the last of each, since cleaning up comes again and again."""
    last = {name: place for place, name in enumerate(names(ORDERS[target]))}
    places = [last[name] for name in order.split() if name != "RemoveDeadCode"]
    assert places == sorted(places)


ENGINES = {"cpu": cpu_engine_passes(), "cuda": cuda_engine_passes(), "tensorrt": tensorrt_engine_passes()}
EVERY_ORDER = {**ORDERS, **{f"{name} engine": passes for name, passes in ENGINES.items()}}


def moved(passes: list[GraphPass], name: str, before: str) -> list[GraphPass]:
    """The same passes, the last of one kind in front of the first of another."""
    order = names(passes)
    place = len(order) - 1 - order[::-1].index(name)
    rest = [*passes[:place], *passes[place + 1 :]]
    rest.insert(names(rest).index(before), passes[place])
    return rest


@pytest.mark.parametrize(
    ("target", "name", "before", "refused", "fact", "ender"),
    [
        ("portable", "UsePositionIds", "NameGraph", "UsePositionIds", Fact.NAMED, ""),
        ("portable", "RecognizeAttention", "PositionsByRow", "RecognizeAttention", Fact.POSITIONS, ""),
        ("cpu", "ConvertFloat", "InlineRecurrence", "ConvertFloat", Fact.RECURRENCES, ""),
        ("cpu", "FuseQKNorm", "FuseRotary", "FuseQKNorm", Fact.ROTATIONS, ""),
        ("cpu", "PackQKV", "FuseQKNorm", "PackQKV", Fact.LAYOUTS, "FuseRotary"),
        ("cpu", "LowerAttention", "EqualHeadWidths", "LowerAttention", Fact.WIDTHS, ""),
        ("cpu", "SetCacheIO", "LowerAttention", "SetCacheIO", Fact.ATTENTION, ""),
        ("cpu", "QuantizeWeights", "PackQKV", "QuantizeWeights", Fact.EXPERTS, ""),
        ("cpu", "QuantizeWeights", "RemoveDeadCode", "QuantizeWeights", Fact.EXPERTS, ""),
        ("cpu", "FuseTransposedMatMul", "QuantizeWeights", "QuantizeWeights", Fact.TABLES, "FuseTransposedMatMul"),
        ("cuda", "FuseGatedSilu", "FuseSilu", "FuseGatedSilu", Fact.SILU, ""),
        ("cuda", "FuseSkipNorm", "SetCacheIO", "FuseSkipNorm", Fact.FLOAT32, "ConvertFloat"),
        ("cuda", "ConvertFloat", "FuseTransposedMatMul", "ConvertFloat", Fact.WEIGHTS, "QuantizeWeights"),
        ("cuda", "QuantizeWeights", "AttachBodies", "QuantizeWeights", Fact.NOTHING_DEAD, "LowerMoE"),
        ("cuda", "CheckCudaKernels", "UniqueNodeNames", "CheckCudaKernels", Fact.OWN_NAMES, ""),
        ("scatter", "EqualHeadWidths", "InlineBodies", "UseStandardAttention", Fact.WIDTHS, ""),
        ("scatter", "InlineBodies", "UseStandardAttention", "InlineBodies", Fact.ATTENTION, ""),
        ("concat", "PinAngleWidth", "SimplifyShapes", "PinAngleWidth", Fact.LAYOUTS, "InlineBodies"),
        ("cpu engine", "UseCpuGatedMatMul", "UseCpuMatMul", "UseCpuGatedMatMul", Fact.CPU_PRODUCTS, ""),
        ("cuda engine", "TakeLengths", "RemoveDeadCode", "TakeLengths", Fact.NOTHING_DEAD, "GatherLastRows"),
    ],
)
def test_a_wrong_order_is_refused_in_a_sentence(
    target: str, name: str, before: str, refused: str, fact: Fact, ender: str
) -> None:
    why = f"{ender} ended that" if ender else "no pass before it sees to that"
    sentence = f"{refused} needs a graph in which {fact}, and {why}; mend the order of the passes"
    with pytest.raises(PassError, match=f"^{re.escape(sentence)}$"):
        check_order(moved(EVERY_ORDER[target], name, before))


def test_passes_that_do_not_meet_may_change_places() -> None:
    check_order(moved(CUDA, "LowerMoE", "LowerAttention"))
    check_order(moved(CPU, "FuseSilu", "PackQKV"))


@pytest.mark.parametrize("target", EVERY_ORDER)
def test_what_changes_places_is_refused_or_may(target: str) -> None:
    """Of every two passes: never with another error, and never the order that stands there."""
    passes = EVERY_ORDER[target]
    check_order(passes)
    said = []
    for first, second in itertools.combinations(range(len(passes)), 2):
        other = list(passes)
        other[first], other[second] = passes[second], passes[first]
        try:
            check_order(other)
        except PassError as error:
            said.append(str(error))
    sentence = r"\w+ needs a graph in which [\w' ]+, and [\w ]+; mend the order of the passes"
    assert all(re.fullmatch(sentence, text) for text in said)
    assert len(said) >= len(passes) - 4


def test_a_list_in_a_wrong_order_runs_no_pass() -> None:
    model = ir.Model(ir.Graph([], [], nodes=[], opset_imports={"": 23}), ir_version=10)
    with pytest.raises(PassError, match="UseCpuGatedMatMul needs a graph in which products are llmc's own"):
        run_passes(model, [UniqueNodeNames(), *cpu_engine_passes()[1:]])


@pytest.mark.parametrize("target", ["cpu", "cuda"])
def test_nothing_dead_is_quantized_or_left(target: str) -> None:
    order = names(ORDERS[target])
    weights = order.index("QuantizeWeights")
    before = order[:weights][::-1]
    assert before.index("RemoveDeadCode") < before.index("PackQKV")
    assert before[0 if target == "cpu" else 1] == "RemoveDeadCode", "right after the cache's form"
    assert order[weights:].count("RemoveDeadCode") == 1
    for passes in (SCATTER, CONCAT):
        assert names(passes)[-3:] == ["QuantizeWeights", "RemoveDeadCode", "UniqueNodeNames"]


def test_half_precision_comes_between_fusions_and_quantization() -> None:
    """The fusions know float32; scales have the activations' type."""
    for passes, cache in ((CUDA, "SetCacheIO"), (SCATTER, "QuantizeWeights")):
        order = names(passes)
        first, second = (place for place, name in enumerate(order) if name == "ConvertFloat")
        fused = max(order.index(name) for name in order if name.startswith(("Fuse", "Pack", "Lower", "UseStandard"))
                    and name != "FuseTransposedMatMul")  # fmt: skip
        assert first < fused < second < order.index(cache)
    assert [item for item in CUDA if isinstance(item, ConvertFloat)] == [ConvertFloat(), ConvertFloat("fp16")]


@pytest.mark.parametrize(("activations", "wide"), [("fp16", True), ("bf16", False)])
def test_float16_alone_widens_the_residual_stream_of_tensorrt(activations: Any, wide: bool) -> None:
    passes = standard_passes(GraphRequest(64, activations))
    assert [item for item in passes if isinstance(item, ConvertFloat)][1] == ConvertFloat(activations, wide)
    on_cuda = cuda_passes(GraphRequest(64, activations))
    assert [item for item in on_cuda if isinstance(item, ConvertFloat)][1] == ConvertFloat(activations)


def test_head_norms_stay_outside_on_the_cpu_and_move_inside_on_cuda() -> None:
    assert (only(CPU, PackQKV), only(CUDA, PackQKV)) == (PackQKV(), PackQKV(with_qk_norm=True))
    assert (only(CPU, LowerAttention).qk_norm, only(CUDA, LowerAttention).qk_norm) == (False, True)


@pytest.mark.parametrize("passes", [cpu_passes, cuda_passes])
def test_what_is_asked_for_reaches_its_pass(passes: Any) -> None:
    for seqlens, kernels, cache, logits in ((True, False, "grow", "all"), (False, True, "shared", "last")):
        given = {"query_seqlens": seqlens, "expert_kernels": kernels, "cache": cache, "logits": logits}
        made = passes(GraphRequest(77, **given))
        attention = only(made, LowerAttention)
        assert (attention.query_seqlens, attention.max_positions) == (seqlens, 77)
        assert only(made, FuseRotary) == FuseRotary(77)
        assert only(made, LowerMoE) == LowerMoE(kernel=kernels)
        assert only(made, SetCacheIO) == SetCacheIO(cache)
        assert ("LastTokenLogits" in names(made)) == (logits == "last")
        assert not {"QuantizeWeights", "QuantizeCache"} & set(names(made))


def test_defaults() -> None:
    """What a runtime has is what the one has that llmc is made for."""
    request = GraphRequest(64)
    assert (request.activations, request.cache, request.logits) == ("fp32", "shared", "last")
    assert (request.quantization, request.quantized_cache) == (None, None)
    assert (request.pack_gate_up, request.gated_silu, request.query_seqlens, request.expert_kernels) == (True,) * 4


def test_what_a_runtime_lacks_is_left_out() -> None:
    assert {"PackGateUp", "FuseGatedSilu"} <= set(names(CUDA))
    assert "PackGateUp" not in names(cuda_passes(GraphRequest(64, pack_gate_up=False)))
    assert "FuseGatedSilu" not in names(cuda_passes(GraphRequest(64, gated_silu=False)))
    assert "FuseGatedSilu" not in names(CPU)


@pytest.mark.parametrize(("cache", "io"), [("scatter", "shared"), ("concat", "grow")])
def test_standard_caches(cache: Any, io: Any) -> None:
    passes = standard_passes(GraphRequest(99, cache=io))
    assert only(passes, UseStandardAttention) == UseStandardAttention(cache, 99)
    assert only(passes, SetCacheIO) == SetCacheIO(io)
    assert ("EqualHeadWidths" in names(passes)) == (cache == "scatter")
    assert ("PinAngleWidth" in names(passes)) == (cache == "concat")
    assert names(passes).count("ConvertFloat") == 1, "float32 stays what it is"


def test_engines() -> None:
    assert names(cpu_engine_passes()) == [
        "UseCpuMatMul", "UseCpuGatedMatMul", "UseCpuGather", "UseCpuAttention", "RemoveDeadCode", "UniqueNodeNames"
    ]  # fmt: skip
    assert names(cuda_engine_passes()) == [
        "GatherLastRows", "RemoveDeadCode", "TakeLengths", "RemoveDeadCode", "UniqueNodeNames"
    ]  # fmt: skip
    assert names(tensorrt_engine_passes()) == ["TakeLengths", "RemoveDeadCode", "UniqueNodeNames"]
