"""Options: what ``auto`` stands for, and what makes no sense together."""

from __future__ import annotations

import dataclasses
import re
from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import (
    BLOCK_SIZE,
    DEFAULT_CONTEXT,
    FP8_BLOCK_SIZE,
    Cache,
    CompileOptions,
    EngineOptions,
    ExportOptions,
    OptimizeOptions,
    Precision,
)
from llmc.compiler.base.targets import TARGETS, TargetName, get_target


@pytest.mark.parametrize(
    ("target", "precision"),
    [("cpu", "fp32"), ("cuda", "fp16"), ("tensorrt", "fp16"), ("tensorrt-rtx", "fp16"), ("openvino", "fp32")],
)
def test_auto_is_the_targets_plain_float_type(target: TargetName, precision: str) -> None:
    assert OptimizeOptions(target=target).precision == precision


def test_the_default_is_the_cpu() -> None:
    assert (OptimizeOptions().target, OptimizeOptions().precision) == ("cpu", "fp32")


@pytest.mark.parametrize("target", [row.name for row in TARGETS])
@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8", "int4", "fp8", "nvfp4"])
def test_each_target_takes_its_precisions(target: TargetName, precision: Precision) -> None:
    if precision in get_target(target).precisions:
        assert OptimizeOptions(target=target, precision=precision).precision == precision
        return
    accepted = ", ".join(get_target(target).precisions)
    with pytest.raises(UsageError, match=f"--target {target} takes --precision {accepted}, not {precision}"):
        OptimizeOptions(target=target, precision=precision)


@pytest.mark.parametrize(
    ("target", "caches"),
    [
        ("cpu", ["shared", "grow"]), ("cuda", ["shared", "grow"]), ("tensorrt", ["shared"]),
        ("tensorrt-rtx", ["shared"]), ("openvino", ["grow"]),
    ],
)  # fmt: skip
def test_each_target_takes_its_caches(target: TargetName, caches: list[Cache]) -> None:
    """``auto`` is the first."""
    assert OptimizeOptions(target=target).cache == OptimizeOptions(target=target).cache_io == caches[0]
    every: list[Cache] = ["shared", "grow"]
    for cache in every:
        if cache in caches:
            assert OptimizeOptions(target=target, cache=cache).cache_io == cache
            continue
        with pytest.raises(UsageError, match=f"--target {target} takes --kv {caches[0]}, not {cache}"):
            OptimizeOptions(target=target, cache=cache)


@pytest.mark.parametrize(
    ("precision", "given", "activations"),
    [
        ("auto", "fp16", "fp16"),
        ("auto", "bf16", "fp16"),
        ("bf16", "fp16", "bf16"),
        ("fp16", "bf16", "fp16"),
        ("int4", "bf16", "bf16"),
        ("int8", "fp16", "fp16"),
        ("fp8", "bf16", "bf16"),
    ],
)
def test_weights_in_half_precision_bring_their_activations(precision: Any, given: Any, activations: str) -> None:
    made = OptimizeOptions(target="cuda", precision=precision, activations=given)
    assert made.activations == activations


@pytest.mark.parametrize(
    ("precision", "given", "blocks"),
    [
        ("int4", None, BLOCK_SIZE), ("int8", None, BLOCK_SIZE), ("fp16", None, BLOCK_SIZE),
        ("fp8", None, FP8_BLOCK_SIZE), ("fp8", 64, 64), ("int4", 128, 128), ("int4", 16, 16),
    ],
)  # fmt: skip
def test_block_sizes(precision: Precision, given: int | None, blocks: int) -> None:
    made = OptimizeOptions(target="cuda", precision=precision, block_size=given)
    assert (made.block_size, made.blocks) == (given, blocks)
    assert dataclasses.replace(made) == made


@pytest.mark.parametrize(
    ("options", "packed"),
    [
        ({"precision": "int5"}, True),
        ({"precision": "int6", "layout": "packed", "block_size": 32}, True),
        ({"precision": "int4", "head": "int6"}, True),
        ({"precision": "int8", "layout": "packed", "symmetric": True, "zero_points": "none"}, True),
        ({"precision": "int4"}, True),
        ({"precision": "int8", "symmetric": False, "block_size": 32}, True),
        ({"precision": "int4", "layout": "nbits"}, False),
        ({"precision": "int4", "zero_points": "integer"}, False),
        ({"precision": "int8", "zero_points": "offset"}, False),
        ({"precision": "int4", "block_size": 16}, False),
        ({"precision": "fp32"}, False),
        ({"target": "cuda", "precision": "int4"}, False),
    ],
)
def test_layouts(options: dict[str, Any], packed: bool) -> None:
    made = OptimizeOptions(**options)
    assert made.packed is packed
    assert made.block_size == options.get("block_size")
    assert dataclasses.replace(made) == made


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "packed"},
         "--layout packed is for --target cpu and weights of 4 to 8 bits, not --target cpu --precision fp32"),
        ({"layout": "packed", "precision": "int4", "target": "openvino"},
         "--layout packed is for --target cpu and weights of 4 to 8 bits, not --target openvino --precision int4"),
        ({"head": "int6", "precision": "int4", "target": "cuda"}, "--head int6 is for --target cpu"),
        ({"layout": "nbits", "precision": "int4", "target": "cuda"},
         "--layout is for --target cpu; cuda has one way to store weights"),
        ({"layout": "nbits", "precision": "int5"}, "--precision int5 and --layout nbits exclude each other"),
        ({"layout": "nbits", "precision": "int4", "head": "int5"}, "--head int5 and --layout nbits exclude"),
        ({"layout": "packed", "precision": "int4", "block_size": 16},
         "--layout packed and --block-size 16 exclude each other; leave one of them out"),
        ({"precision": "int6", "zero_points": "offset"}, "--precision int6 and --zero-points offset exclude"),
        ({"layout": "packed", "precision": "int4", "block_size": 96}, "--block-size 96 is not a power of two"),
    ],
)  # fmt: skip
def test_layouts_that_have_not_what_is_asked_for(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=re.escape(message)):
        OptimizeOptions(**options)


@pytest.mark.parametrize("kind", ["int8", "fp8"])
def test_the_cache_is_quantized_on_a_gpu_alone(kind: Any) -> None:
    assert OptimizeOptions(target="cuda", cache_precision=kind).cache_precision == kind
    others: list[TargetName] = ["cpu", "tensorrt", "tensorrt-rtx", "openvino"]
    for target in others:
        message = f"--kv-precision is for --target cuda; {target} keeps the cache as it computes"
        with pytest.raises(UsageError, match=message):
            OptimizeOptions(target=target, cache_precision=kind)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": "tpu"}, "--target tpu is none of cpu, cuda, tensorrt, tensorrt-rtx, openvino"),
        (
            {"precision": "int2"},
            "--precision int2 is none of auto, fp32, fp16, bf16, int8, int6, int5, int4, fp8, nvfp4",
        ),
        ({"target": "cuda", "activations": "fp32"}, "--activations fp32 is none of fp16, bf16"),
        ({"target": "cuda", "cache_precision": "int4"}, "--kv-precision int4 is none of auto, int8, fp8"),
        ({"cache": "paged"}, "--kv paged is none of auto, grow, shared"),
        ({"logits": "some"}, "--logits some is none of last, all"),
        ({"zero_points": "float"}, "--zero-points float is none of auto, none, integer, offset"),
        ({"zero_points": "offset", "symmetric": True}, "^--symmetric contradicts --zero-points offset; give one"),
        ({"zero_points": "integer", "symmetric": True}, "^--symmetric contradicts --zero-points integer; give one"),
        ({"zero_points": "none", "symmetric": False}, "^--asymmetric contradicts --zero-points none; give one"),
        ({"head": "fp16"}, "--head fp16 is none of auto, int8, int6, int5, int4"),
        ({"context": 1}, "--context 1 leaves no room for a prompt"),
        ({"context": 0}, "--context 0 leaves no room for a prompt"),
        ({"block_size": 48}, "--block-size 48 is not a power of two from 16 up"),
        ({"block_size": 8}, "--block-size 8 is not a power of two from 16 up"),
        ({"target": "cuda", "precision": "fp8", "block_size": 100}, "--block-size 100 is not a power of two"),
    ],
)
def test_what_makes_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        OptimizeOptions(**options)


@pytest.mark.parametrize(
    ("symmetric", "zero"), [(True, "none"), (False, "integer"), (False, "offset"), (None, "none"), (None, "offset")]
)
def test_zero_points_may_be_asked_for_in_two_ways(symmetric: bool | None, zero: Any) -> None:
    assert OptimizeOptions(precision="int4", symmetric=symmetric, zero_points=zero).zero_points == zero


def test_a_block_size_of_0_is_no_default() -> None:
    with pytest.raises(UsageError, match="--block-size 0 is not a power of two from 16 up"):
        OptimizeOptions(block_size=0)


@pytest.mark.parametrize("verify", ["auto", "on"])
def test_a_graph_without_weights_cannot_be_compared(verify: Any) -> None:
    with pytest.raises(UsageError, match="--weights none leaves nothing to compare with the model"):
        ExportOptions(weights="none", verify=verify)
    assert ExportOptions(weights="none", verify="off").weights == "none"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "fp8"}, "--dtype fp8 is none of fp32, fp16, bf16"),
        ({"verify": "maybe"}, "--verify maybe is none of auto, on, off"),
    ],
)
def test_unknown_ways_to_capture(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        ExportOptions(**options)


def test_somebody_must_compute() -> None:
    assert (CompileOptions(threads=1).threads, CompileOptions().threads) == (1, None)
    for threads in (0, -1, 1025, 10**30):
        with pytest.raises(UsageError, match=f"--threads {threads} is no number of threads; give 1 to 1024"):
            CompileOptions(threads=threads)


def test_defaults() -> None:
    """As the documentation has them."""
    assert (DEFAULT_CONTEXT, BLOCK_SIZE, FP8_BLOCK_SIZE) == (8192, 32, 128)
    options, engine = OptimizeOptions(), EngineOptions()
    assert (options.cache_precision, options.logits, options.context, options.head) == ("auto", "last", None, "auto")
    assert (options.symmetric, options.strict, options.dump, options.activations) == (None, False, None, "fp16")
    assert options.zero_points == "auto"
    assert (engine.max_batch, engine.chunk, engine.capacities, engine.capabilities) == (4, 512, (), ())
    assert ExportOptions() == ExportOptions(dtype="fp32", verify="auto", weights="model", trust_remote_code=False)


@pytest.mark.parametrize("block_size", [16, 64, 1024])
def test_blocks_of_powers_of_two(block_size: int) -> None:
    assert OptimizeOptions(precision="int4", block_size=block_size).blocks == block_size
    assert OptimizeOptions(context=2).context == 2


def test_an_engine_for_the_cpu_needs_weights() -> None:
    exporting = ExportOptions(weights="none", verify="off")
    assert CompileOptions(exporting, OptimizeOptions(target="cuda")).export is exporting
    with pytest.raises(UsageError, match="--weights none is for --target cuda"):
        CompileOptions(exporting, OptimizeOptions())


def test_unknown_weights() -> None:
    unknown: Any = "half"
    with pytest.raises(UsageError, match="--weights half is none of model, none"):
        ExportOptions(weights=unknown, verify="off")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_batch": 0}, "--max-batch 0 leaves nothing to compute"),
        ({"chunk": 0}, "--chunk 0 leaves nothing to compute"),
        ({"max_batch": -1}, "--max-batch -1 leaves nothing to compute; give at least 1"),
        ({"capacities": (1024, 0)}, "a cache of less than 2 tokens holds no prompt"),
        ({"capacities": (1, 1024)}, "a cache of less than 2 tokens holds no prompt"),
        ({"capacities": (0, 1024)}, "a cache of less than 2 tokens holds no prompt"),
        *(
            ({"capabilities": given}, rf"--gpu {given[-1]} is no compute capability; write it as 8\.9")
            for given in (("sm89",), ("8.9", "sm89"), ("8.9a",), ("8.90",), ("8",), ("112.0",), (" 8.9",))
        ),
    ],
)
def test_engines_that_make_no_sense(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        EngineOptions(**options)


def test_the_least_that_an_engine_is_built_for() -> None:
    made = EngineOptions(max_batch=1, chunk=1, capacities=(2, 3), capabilities=("8.9", "12.0"))
    assert made.capabilities == ("8.9", "12.0")


@pytest.mark.parametrize(
    "options",
    [{"max_batch": 8}, {"chunk": 64}, {"capacities": (64,)}, {"capabilities": ("8.9",)}, {"strip_weights": True}],
)
def test_only_tensorrt_builds_for_lengths_and_gpus(options: dict[str, Any]) -> None:
    engine = EngineOptions(**options)
    for target in ("tensorrt", "tensorrt-rtx"):
        engine.require_target(target)
    with pytest.raises(
        UsageError, match=r"--max-batch, .* are for --target tensorrt and tensorrt-rtx; an engine for cpu"
    ):
        CompileOptions(engine=engine)
    CompileOptions(engine=EngineOptions(strict=True))


def test_the_installed_runtime_is_asked_for_the_cpu_alone() -> None:
    assert OptimizeOptions(installed_runtime=True).installed_runtime
    with pytest.raises(
        UsageError, match="--for-installed-runtime is for --target cpu; a graph for openvino is the same"
    ):
        OptimizeOptions(target="openvino", installed_runtime=True)


@pytest.mark.parametrize(
    ("asked", "kept"),
    [
        ({}, True),
        ({"head": "int4"}, True),
        ({"symmetric": True}, False),
        ({"symmetric": False}, False),
        ({"zero_points": "offset"}, False),
        ({"block_size": 32}, False),
        ({"layout": "nbits"}, False),
        ({"layout": "packed"}, False),
        ({"layout": "packed", "keep_grid": True}, True),
        ({"keep_grid": False}, False),
    ],
)
def test_a_grid_is_kept_unless_blocks_are_asked_for(asked: dict[str, Any], kept: bool) -> None:
    options = OptimizeOptions(precision="int4", **asked)
    assert options.keep_grid is kept
    assert dataclasses.replace(options).keep_grid is kept


# --- a limit to what may be lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [-1e-9, float("nan"), float("inf")])
def test_what_is_no_divergence(limit: float) -> None:
    with pytest.raises(UsageError, match=r"--max-kl .* is no divergence; give a number of nats from 0 on"):
        OptimizeOptions(max_kl=limit)


@pytest.mark.parametrize("limit", [0.0, 0.05, 3.0, None])
def test_limits_to_what_may_be_lost(limit: float | None) -> None:
    assert OptimizeOptions(max_kl=limit).max_kl == limit


def test_a_limit_needs_a_comparison() -> None:
    with pytest.raises(UsageError, match="--max-kl needs the comparison that --verify off leaves out"):
        CompileOptions(ExportOptions(verify="off"), OptimizeOptions(max_kl=0.1))
    CompileOptions(ExportOptions(verify="off"))
    CompileOptions(ExportOptions(verify="auto"), OptimizeOptions(max_kl=0.0))


@pytest.mark.parametrize(
    "other", [{"keep_grid": False}, {"symmetric": True}, {"block_size": 64}, {"layout": "nbits"}]
)
def test_numbers_of_a_checkpoint_are_kept_or_chosen_anew(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--keep-quantization stores numbers as a checkpoint has them"):
        OptimizeOptions(precision="int4", keep_quantization=True, **other)
