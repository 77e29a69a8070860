"""What a user asked for: made once at the command line, validated, and passed down unchanged.

In: command-line values. Out: frozen dataclasses, whose fields say what they mean where they are
(:func:`~llmc.compiler.base.option_field.option`); a value that makes no sense is a :class:`UsageError`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal, get_args

from llmc.compiler.base.contract import CacheKind, FloatType, LogitsKind
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import number_list, option, require_accepted, word_list
from llmc.compiler.base.targets import TARGETS, TargetName, WeightType, get_target

Precision = Literal["auto", WeightType]
Activations = Literal["fp16", "bf16"]
CachePrecision = Literal["auto", "int8", "fp8"]
Weights = Literal["model", "none"]
HeadPrecision = Literal["auto", "int8", "int6", "int5", "int4"]
Layout = Literal["auto", "packed", "nbits"]
Zero = Literal["none", "integer", "offset"]
ZeroPoints = Literal["auto", Zero]
Cache = Literal["auto", CacheKind]
Verify = Literal["auto", "on", "off"]
Effort = Literal["auto", "round", "fast", "normal", "best"]
ChosenEffort = Literal["round", "fast", "normal", "best"]
MODEL_PATH_VARIABLE = "LLMC_MODEL_PATH"
DEFAULT_CONTEXT = 8192
"""Longest context of an engine unless the user asks for another; a model made for less gets its own limit."""
SHORTEST_CONTEXT = 2
"""Tokens of a prompt and the one that follows: an engine of less can neither be run nor compared."""
PACKED_ALONE = ("int6", "int5")
"""Precisions of weights that are packed or not there at all."""
PACKED_MULTIPLE = 32
"""Of which packed blocks are multiples."""
MOST_THREADS = 1024
"""Beyond which no machine gains, and runtimes count no further."""
BLOCK_SIZE, FP8_BLOCK_SIZE = 32, 128
"""Input features that share a scale, unless the user says otherwise."""


@dataclass(frozen=True)
class ExportOptions:
    """How to capture a model."""

    dtype: FloatType = option("fp32", "Float type of the portable graph.")
    verify: Verify = option(
        "auto", "Compare with transformers: where the model fits into memory (auto), always (on), never (off)."
    )
    trust_remote_code: bool = option(False, "Run modeling code that comes with the checkpoint.")
    search_path: tuple[Path, ...] = option(
        (),
        "Look here too for the packages of built-in models; repeatable.",
        "--model-path",
        metavar="DIR",
        variable=MODEL_PATH_VARIABLE,
    )
    revision: str | None = option(
        None,
        "Branch, tag or commit of a model on the Hugging Face hub, as MODEL@REVISION too. Default: its newest state.",
        metavar="REVISION",
    )
    adapters: tuple[str, ...] = option(
        (),
        "Merge an adapter of PEFT (LoRA, DoRA) into the weights: its directory or hub id, and how much of it; "
        "repeatable, in order.",
        "--adapter",
        metavar="DIR[:SCALE]",
    )
    no_adapter: bool = option(False, "Leave an adapter out that lies in the model's own directory.")
    ignored: tuple[str, ...] = option(
        (),
        "Leave out tensors of the checkpoint of this name (* for any letters) for which the model has no place, and "
        "which would be an error; repeatable.",
        "--ignore-tensor",
        metavar="NAME",
    )
    weights: Weights = option(
        "model", "Leave the weights out (none), to measure a geometry with random ones elsewhere."
    )

    def __post_init__(self) -> None:
        """Refuse unknown values, and a comparison of a graph that has no weights."""
        require_accepted(self)
        if self.adapters and self.no_adapter:
            raise UsageError("--adapter and --no-adapter exclude each other; leave one of them out")
        if self.weights == "none" and self.verify != "off":
            raise UsageError("--weights none leaves nothing to compare with the model; give --verify off as well")


@dataclass(frozen=True)
class OptimizeOptions:
    """What to make of a portable graph; ``auto`` and None are settled by the target and the model when it is made."""

    PANEL: ClassVar = "Graph and weights"
    target: TargetName = option("cpu", "Runtime to optimize for.")
    precision: Precision = option("auto", "Type of the weights. auto: fp32 on the CPU, fp16 on a GPU.")
    activations: Activations = option("fp16", "Float type that a GPU computes in.")
    cache: Cache = option(
        "auto",
        "KV cache: one fixed buffer (shared), or present = past + new (grow). auto: as the target has it.",
        "--kv",
    )
    cache_precision: CachePrecision = option(
        "auto", "Type of the KV cache on a GPU: that of the activations (auto), or 8 bits.", "--kv-precision"
    )
    logits: LogitsKind = option("last", "Logits of each row's last token only, or of every token.")
    context: int | None = option(None, "Longest context in tokens. Default: the model's, at most 8192.")
    layout: Layout = option(
        "auto",
        "How weights in integers are stored for the CPU: as llmc's own operators read them, in fewer bytes, and with "
        "bits by what a layer is for (packed); or as ONNX Runtime's own operators do (nbits). auto: packed, unless "
        "another option asks for what that has not.",
    )
    block_size: int | None = option(
        None,
        "Input features that share a quantization scale. Default: 32; 16 for int4 without zero points on CUDA; 128 "
        "for fp8; packed: 64, or 32 where rows are no multiple of it.",
    )
    symmetric: bool | None = option(
        None,
        "Blocks without or with an offset each (on CUDA and packed: a zero point). Default: with one where packed, "
        "and for int4, except on CUDA.",
        "--symmetric/--asymmetric",
    )
    zero_points: ZeroPoints = option(
        "auto",
        "What blocks have beside a scale, where the target has it: nothing, an integer zero point or a float offset. "
        "auto: as --symmetric or --asymmetric says, else the target's own.",
    )
    head: HeadPrecision = option(
        "auto",
        "Precision of the output projection and the embedding; auto is int8, packed by precision; int5 and int6 are "
        "packed.",
    )
    keep_grid: bool | None = option(
        None,
        "Store weights that lie on a grid of integers already, as those of a quantized file do, on that grid, so "
        "that nothing is lost. Default: yes, unless blocks, zero points or layout are asked for.",
        "--keep-grid/--no-keep-grid",
    )
    keep_quantization: bool = option(
        False,
        "Fail where weights that the checkpoint holds in small numbers are not stored as the same numbers.",
    )
    effort: Effort = option(
        "auto",
        "How long to choose quantized weights: rounded to nearest (round), each block on the grid that errs least "
        "(fast), layer by layer on a calibration text (normal), on more of it (best). auto: normal for a model of up "
        "to 600 million weights, fast where it has no tokenizer; round for larger ones.",
    )
    calibration: Path | None = option(
        None, "Text to calibrate on, UTF-8 or JSON lines. Default: one that comes with llmc.", metavar="FILE"
    )
    installed_runtime: bool = option(
        False,
        "Make the graph for the ONNX Runtime that is installed here, which may be older than the release that llmc "
        "is made for.",
        "--for-installed-runtime",
    )
    max_kl: float | None = option(
        None,
        "Fail when the mean KL divergence from the model, in nats, is larger than this; nothing is written then.",
        metavar="X",
    )
    strict: bool = option(False, "Fail when a fusion fires less often than the model says.")
    dump: Path | None = option(None, "Write the graph after every pass there.", metavar="DIR")

    def __post_init__(self) -> None:
        """Refuse unknown values and sizes that no kernel takes."""
        require_accepted(self)
        target = get_target(self.target)
        if self.keep_grid is None:
            free = self.symmetric is None and self.block_size is None
            object.__setattr__(self, "keep_grid", free and self.zero_points == self.layout == "auto")
        if self.keep_quantization and not self.keep_grid:
            raise UsageError(
                "--keep-quantization stores numbers as a checkpoint has them, which --no-keep-grid, and blocks, zero "
                "points or a layout that are asked for, do not; give one of them"
            )
        if self.context is not None and self.context < SHORTEST_CONTEXT:
            raise UsageError(f"--context {self.context} leaves no room for a prompt and a token behind it")
        require_divergence(self.max_kl)
        if self.precision == "auto":
            object.__setattr__(self, "precision", target.precisions[0])
        if self.cache == "auto":
            object.__setattr__(self, "cache", target.caches[0])
        for flag, value, accepted in (
            ("--precision", self.precision, target.precisions),
            ("--kv", self.cache, target.caches),
        ):
            if value not in accepted:
                raise UsageError(f"--target {self.target} takes {flag} {', '.join(accepted)}, not {value}")
        if self.zero_points != "auto" and self.symmetric not in {None, self.zero_points == "none"}:
            flag = "--symmetric" if self.symmetric else "--asymmetric"
            raise UsageError(f"{flag} contradicts --zero-points {self.zero_points}; give one of them")
        if self.precision in get_args(Activations):
            object.__setattr__(self, "activations", self.precision)
        if self.calibration is not None and self.effort in {"round", "fast"}:
            raise UsageError(f"--calibration has no use with --effort {self.effort}; give --effort normal or best")
        if self.cache_precision not in {"auto", *target.cache_precisions}:
            others = " and ".join(row.name for row in TARGETS if self.cache_precision in row.cache_precisions)
            raise UsageError(f"--kv-precision is for --target {others}; {self.target} keeps the cache as it computes")
        if self.installed_runtime and not target.asks_runtime:
            others = " and ".join(row.name for row in TARGETS if row.asks_runtime)
            raise UsageError(
                f"--for-installed-runtime is for --target {others}; a graph for {self.target} is the same anywhere"
            )
        self._require_layout()
        require_block_size(self.blocks, "--block-size")

    def _require_layout(self) -> None:
        """Refuse a layout that has not what is asked for."""
        precisions, packed, nbits = get_target(self.target).packed_precisions, self._asks_packed(), self._asks_nbits()
        if packed and self.precision not in precisions:
            asked = f"--target {self.target} --precision {self.precision}"
            raise UsageError(f"{packed[0]} is for --target cpu and weights of 4 to 8 bits, not {asked}")
        if self.layout == "nbits" and not precisions:
            raise UsageError(f"--layout is for --target cpu; {self.target} has one way to store weights")
        if packed and nbits:
            raise UsageError(f"{packed[0]} and {nbits[0]} exclude each other; leave one of them out")

    def _asks_packed(self) -> list[str]:
        """Options that only packed weights have."""
        asked = ["--layout packed"] if self.layout == "packed" else []
        asked += [f"--precision {self.precision}"] if self.precision in PACKED_ALONE else []
        return asked + ([f"--head {self.head}"] if self.head in PACKED_ALONE else [])

    def _asks_nbits(self) -> list[str]:
        """Options that packed weights have not."""
        asked = [f"--zero-points {self.zero_points}"] if self.zero_points in {"integer", "offset"} else []
        small = self.block_size is not None and self.block_size < PACKED_MULTIPLE
        asked += [f"--block-size {self.block_size}"] if small else []
        return asked + (["--layout nbits"] if self.layout == "nbits" else [])

    @property
    def packed(self) -> bool:
        """Whether weights are stored as llmc's own operators read them."""
        return self.precision in get_target(self.target).packed_precisions and not self._asks_nbits()

    @property
    def blocks(self) -> int:
        """Input features that share a quantization scale."""
        if self.block_size is not None:
            return self.block_size
        return FP8_BLOCK_SIZE if self.precision == "fp8" else BLOCK_SIZE

    @property
    def cache_io(self) -> CacheKind:
        """How the KV cache goes in and out."""
        return "grow" if self.cache == "grow" else "shared"


@dataclass(frozen=True)
class EngineOptions:
    """What a TensorRT engine is built for; without ``capacities`` the graph's context says which it has."""

    PANEL: ClassVar = "TensorRT engines"
    max_batch: int = option(4, "Most rows at once.")
    chunk: int = option(512, "Most prompt tokens of a row in one run; longer prompts run in pieces.")
    capacities: tuple[int, ...] = option(
        (),
        "Lengths of the KV cache in tokens, an engine each, as 1024,8192; a request runs on the shortest that "
        "holds it. Default: 1024, 8192, … up to the graph's context.",
        "--capacity",
        metavar="LIST",
        parse=number_list,
    )
    capabilities: tuple[str, ...] = option(
        (),
        "Compute capabilities to build for, as 8.9,12.0; for tensorrt-rtx alone. Default: all that it can.",
        "--gpu",
        metavar="LIST",
        parse=word_list,
    )
    strip_weights: bool = option(
        False,
        "Engines without weights, which are read from the graph when an engine is opened; a GPU is needed to "
        "build them.",
    )
    strict: bool = option(False, "Fail when a product runs in another precision than asked.")

    def __post_init__(self) -> None:
        """Refuse sizes that hold nothing, and what is no compute capability."""
        for flag, size in (("--max-batch", self.max_batch), ("--chunk", self.chunk)):
            if size < 1:
                raise UsageError(f"{flag} {size} leaves nothing to compute; give at least 1")
        if any(size < SHORTEST_CONTEXT for size in self.capacities):
            raise UsageError(
                f"a cache of less than {SHORTEST_CONTEXT} tokens holds no prompt and a token behind it; give "
                "--capacity longer ones"
            )
        for capability in self.capabilities:
            if not re.fullmatch(r"\d{1,2}\.\d", capability):
                raise UsageError(f"--gpu {capability} is no compute capability; write it as 8.9, several as 8.9,12.0")

    def require_context(self, context: int | None) -> None:
        """Refuse a cache that is longer than the graph's context.

        Raises:
            UsageError: it is.
        """
        longest = max(self.capacities, default=0)
        if context is not None and longest > context:
            raise UsageError(
                f"--capacity {longest} is more than the {context} tokens that the graph was made for; "
                "optimize the model again with a longer --context"
            )

    def require_target(self, target: str | None) -> None:
        """Refuse what only TensorRT builds for, on another target.

        Raises:
            UsageError: one of the options is given, and ``target`` has no use for it.
        """
        if not get_target(target).takes_sizes and replace(self, strict=False) != EngineOptions():
            others = " and ".join(row.name for row in TARGETS if row.takes_sizes)
            raise UsageError(
                f"--max-batch, --chunk, --capacity, --gpu and --strip-weights are for --target {others}; an engine "
                f"for {target} takes any batch and length"
            )


@dataclass(frozen=True)
class CompileOptions:
    """Everything that ``llmc compile`` needs.

    Attributes:
        export: How to capture.
        optimize: What to make of it.
        threads: Threads to build the engine for; None: chosen where it is opened.
        engine: What to build a TensorRT engine for.
    """

    export: ExportOptions = field(default_factory=ExportOptions)
    optimize: OptimizeOptions = field(default_factory=OptimizeOptions)
    threads: int | None = option(
        None, "Threads to compute with. Default: one per physical core.", least=1, most=MOST_THREADS
    )
    engine: EngineOptions = field(default_factory=EngineOptions)

    def __post_init__(self) -> None:
        """Refuse what the target has no use for, and a CPU engine, which is opened, without weights."""
        self.engine.require_target(self.optimize.target)
        target = get_target(self.optimize.target)
        if self.export.weights == "none" and not target.builds_without_weights:
            others = " and ".join(row.name for row in TARGETS if row.builds_without_weights)
            raise UsageError(f"--weights none is for --target {others}; {target.name} reads them to build an engine")
        if self.threads is not None and not 1 <= self.threads <= MOST_THREADS:
            raise UsageError(f"--threads {self.threads} is no number of threads; give 1 to {MOST_THREADS}")
        if self.optimize.max_kl is not None and self.export.verify == "off":
            raise UsageError("--max-kl needs the comparison that --verify off leaves out; give one of them")


def require_divergence(limit: float | None) -> None:
    """Refuse what is no largest KL divergence.

    Raises:
        UsageError: it is negative or no number.
    """
    if limit is not None and not 0 <= limit < math.inf:
        raise UsageError(f"--max-kl {limit:g} is no divergence; give a number of nats from 0 on, as 0.05")


def require_block_size(size: int, name: str = "block size") -> None:
    """Refuse numbers of input features to a scale that no kernel takes.

    Raises:
        UsageError: ``size`` is no power of two from 16 up.
    """
    if size < 16 or size & (size - 1):
        raise UsageError(f"{name} {size} is not a power of two from 16 up")
