"""What a user asked for: made once at the command line, validated, and passed down unchanged.

In: command-line values. Out: frozen dataclasses; a value that makes no sense is a :class:`UsageError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from llmc.compiler.errors import UsageError

Dtype = Literal["fp32", "fp16", "bf16"]
Precision = Literal["auto", "fp32", "fp16", "bf16", "int8", "int4", "fp8"]
Activations = Literal["fp16", "bf16"]
CachePrecision = Literal["auto", "int8", "fp8"]
Weights = Literal["model", "none"]
HeadPrecision = Literal["auto", "int8", "int4"]
Cache = Literal["grow", "shared"]
Logits = Literal["last", "all"]
Target = Literal["cpu", "cuda"]
Verify = Literal["auto", "on", "off"]
DEFAULT_CONTEXT = 8192
"""Longest context of an engine unless the user asks for another; a model made for less gets its own limit."""
PRECISIONS: dict[str, tuple[str, ...]] = {
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp16", "bf16", "int8", "int4", "fp8"),
}
"""Types of weights by target; the first is what ``auto`` stands for."""
BLOCK_SIZE, FP8_BLOCK_SIZE = 32, 128
"""Input features that share a scale, unless the user says otherwise."""


@dataclass(frozen=True)
class ExportOptions:
    """How to capture a model.

    Attributes:
        dtype: Float type of the portable graph.
        trust_remote_code: Run modeling code that comes with the checkpoint.
        search_path: More directories in which built-in models' packages may lie.
        weights: ``none``: the graph alone, its weights left out, for measuring with random ones elsewhere.
        verify: ``on``: run transformers for golden data and compare; ``auto``: where the model fits into memory.
    """

    dtype: Dtype = "fp32"
    verify: Verify = "auto"
    trust_remote_code: bool = False
    search_path: tuple[Path, ...] = ()
    weights: Weights = "model"

    def __post_init__(self) -> None:
        """Refuse unknown values, and a comparison of a graph that has no weights."""
        _one_of("--dtype", self.dtype, get_args(Dtype))
        _one_of("--weights", self.weights, get_args(Weights))
        if self.weights == "none" and self.verify != "off":
            raise UsageError("--weights none leaves nothing to compare with the model; give --verify off as well")
        _one_of("--verify", self.verify, get_args(Verify))


@dataclass(frozen=True)
class OptimizeOptions:
    """What to make of a portable graph.

    Attributes:
        target: The runtime that the graph is for.
        precision: Type of the weights; ``auto``: the target's plain float type.
        activations: Float type of activations on a GPU; weights in ``fp16`` or ``bf16`` bring their own.
        cache_precision: Type of the KV cache's elements; ``auto``: that of the activations.
        cache: ``shared``: past and present are one buffer; ``grow``: present = past + new.
        logits: ``last``: logits of each row's last token; ``all``: of every token.
        context: Longest context in tokens; None: the model's own, at most :data:`DEFAULT_CONTEXT`.
        block_size: Input features that share a quantization scale; None: 32, and 128 for ``fp8``.
        symmetric: Blocks without an offset; None: with one for int4 on the CPU, else without.
        head: Precision of the output projection and the embedding; ``auto``: int8.
        strict: Fail when a fusion fires less often than it must.
        dump: Directory that gets the graph after every pass, without weights.
    """

    target: Target = "cpu"
    precision: Precision = "auto"
    activations: Activations = "fp16"
    cache_precision: CachePrecision = "auto"
    cache: Cache = "shared"
    logits: Logits = "last"
    context: int | None = None
    block_size: int | None = None
    symmetric: bool | None = None
    head: HeadPrecision = "auto"
    strict: bool = False
    dump: Path | None = None

    def __post_init__(self) -> None:
        """Refuse unknown values and sizes that no kernel takes."""
        _one_of("--target", self.target, get_args(Target))
        _one_of("--precision", self.precision, get_args(Precision))
        _one_of("--kv", self.cache, get_args(Cache))
        _one_of("--logits", self.logits, get_args(Logits))
        _one_of("--head", self.head, get_args(HeadPrecision))
        if self.context is not None and self.context < 1:
            raise UsageError(f"--context {self.context} leaves no room for a token")
        _one_of("--activations", self.activations, get_args(Activations))
        _one_of("--kv-precision", self.cache_precision, get_args(CachePrecision))
        accepted = PRECISIONS[self.target]
        if self.precision == "auto":
            object.__setattr__(self, "precision", accepted[0])
        if self.precision not in accepted:
            raise UsageError(f"--target {self.target} takes --precision {', '.join(accepted)}, not {self.precision}")
        if self.precision in get_args(Activations):
            object.__setattr__(self, "activations", self.precision)
        if self.target == "cpu" and self.cache_precision != "auto":
            raise UsageError("--kv-precision is for --target cuda; the CPU's kernels keep the cache in float32")
        if self.block_size is None:
            object.__setattr__(self, "block_size", FP8_BLOCK_SIZE if self.precision == "fp8" else BLOCK_SIZE)
        if self.blocks < 16 or self.blocks & (self.blocks - 1):
            raise UsageError(f"--block-size {self.block_size} is not a power of two from 16 up")

    @property
    def blocks(self) -> int:
        """Input features that share a quantization scale."""
        return BLOCK_SIZE if self.block_size is None else self.block_size


@dataclass(frozen=True)
class CompileOptions:
    """Everything that ``llmc compile`` needs.

    Attributes:
        export: How to capture.
        optimize: What to make of it.
        threads: Threads to build the engine for; None: chosen where it is opened.
    """

    export: ExportOptions = field(default_factory=ExportOptions)
    optimize: OptimizeOptions = field(default_factory=OptimizeOptions)
    threads: int | None = None

    def __post_init__(self) -> None:
        """Refuse a number of threads that computes nothing, and a CPU engine, which is opened, without weights."""
        if self.export.weights == "none" and self.optimize.target == "cpu":
            raise UsageError("--weights none is for --target cuda; an engine for the CPU is opened when it is built")
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads} leaves nobody to compute")


def _one_of(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise UsageError(f"{option} {value} is none of {', '.join(accepted)}")
