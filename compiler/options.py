"""What a user asked for: made once at the command line, validated, and passed down unchanged.

In: command-line values. Out: frozen dataclasses; a value that makes no sense is a :class:`UsageError`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from llmc.compiler.errors import UsageError

Dtype = Literal["fp32", "fp16", "bf16"]
Precision = Literal["fp32", "int8", "int4"]
HeadPrecision = Literal["auto", "int8", "int4"]
Cache = Literal["grow", "shared"]
Logits = Literal["last", "all"]
Target = Literal["cpu"]
Verify = Literal["auto", "on", "off"]
DEFAULT_CONTEXT = 8192
"""Longest context of an engine unless the user asks for another; a model made for less gets its own limit."""


@dataclass(frozen=True)
class ExportOptions:
    """How to capture a model.

    Attributes:
        dtype: Float type of the portable graph.
        trust_remote_code: Run modeling code that comes with the checkpoint.
        search_path: More directories in which built-in models' packages may lie.
        verify: ``on``: run transformers for golden data and compare; ``auto``: where the model fits into memory.
    """

    dtype: Dtype = "fp32"
    verify: Verify = "auto"
    trust_remote_code: bool = False
    search_path: tuple[Path, ...] = ()

    def __post_init__(self) -> None:
        """Refuse unknown values."""
        _one_of("--dtype", self.dtype, get_args(Dtype))
        _one_of("--verify", self.verify, get_args(Verify))


@dataclass(frozen=True)
class OptimizeOptions:
    """What to make of a portable graph.

    Attributes:
        target: The runtime that the graph is for.
        precision: Type of the weights.
        cache: ``shared``: past and present are one buffer; ``grow``: present = past + new.
        logits: ``last``: logits of each row's last token; ``all``: of every token.
        context: Longest context in tokens; None: the model's own, at most :data:`DEFAULT_CONTEXT`.
        block_size: Input features that share a quantization scale.
        symmetric: Blocks without an offset; None: with one for int4, without for int8.
        head: Precision of the output projection and the embedding; ``auto``: int8.
        strict: Fail when a fusion fires less often than it must.
        dump: Directory that gets the graph after every pass, without weights.
    """

    target: Target = "cpu"
    precision: Precision = "fp32"
    cache: Cache = "shared"
    logits: Logits = "last"
    context: int | None = None
    block_size: int = 32
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
        if self.block_size < 16 or self.block_size & (self.block_size - 1):
            raise UsageError(f"--block-size {self.block_size} is not a power of two from 16 up")


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
        """Refuse a number of threads that computes nothing."""
        if self.threads is not None and self.threads < 1:
            raise UsageError(f"--threads {self.threads} leaves nobody to compute")


def _one_of(option: str, value: str, accepted: tuple[str, ...]) -> None:
    if value not in accepted:
        raise UsageError(f"{option} {value} is none of {', '.join(accepted)}")
