"""Arguments and options that several commands share: names, help and checks, written once.

In: nothing. Out: annotated types for the commands' signatures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from llmc.compiler.base import targets
from llmc.compiler.base.contract import FloatType, LogitsKind
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import (
    Activations,
    Cache,
    CachePrecision,
    EngineOptions,
    ExportOptions,
    HeadPrecision,
    OptimizeOptions,
    Precision,
    Verify,
    Weights,
)

MODEL_PATH_VARIABLE = "LLMC_MODEL_PATH"
GRAPH_PANEL, ENGINE_PANEL, REPORT_PANEL = "Graph and weights", "TensorRT engines", "What is shown"
EXPORT, OPTIMIZE, ENGINE = ExportOptions(), OptimizeOptions(), EngineOptions()
"""The defaults that commands show; what depends on the target is ``auto`` or None there."""
AUTO_PRECISION: Precision = "auto"
AUTO_BLOCK_SIZE: int | None = None
AUTO_CACHE: Cache = "auto"

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="Hugging Face directory, hub id, .gguf file, or built-in name: smollm2-135m, gemma3-270m.",
        show_default=False,
    ),
]
Directory = Annotated[
    Path, typer.Argument(metavar="DIR", help="Directory that an llmc command made.", show_default=False)
]
OutputDirectory = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="DIR", help="Directory to make; it appears whole or not at all.", show_default=False
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Replace an artifact that is there, once the new one is complete.")
]
ExportDtype = Annotated[FloatType, typer.Option("--dtype", help="Float type of the portable graph.")]
TrustRemoteCode = Annotated[
    bool, typer.Option("--trust-remote-code", help="Run modeling code that comes with the checkpoint.")
]
ModelPath = Annotated[
    list[Path] | None,
    typer.Option(
        "--model-path",
        metavar="DIR",
        envvar=MODEL_PATH_VARIABLE,
        help="Look here too for the packages of built-in models; repeatable.",
        show_default=False,
    ),
]
TargetName = Annotated[
    targets.TargetName, typer.Option("--target", help="Runtime to optimize for.", rich_help_panel=GRAPH_PANEL)
]
WeightPrecision = Annotated[
    Precision,
    typer.Option(
        "--precision", help="Type of the weights. auto: fp32 on the CPU, fp16 on a GPU.", rich_help_panel=GRAPH_PANEL
    ),
]
CacheIo = Annotated[
    Cache,
    typer.Option(
        "--kv",
        help="KV cache: one fixed buffer (shared), or present = past + new (grow). auto: as the target has it.",
        rich_help_panel=GRAPH_PANEL,
    ),
]
LogitsRows = Annotated[
    LogitsKind,
    typer.Option(
        "--logits", help="Logits of each row's last token only, or of every token.", rich_help_panel=GRAPH_PANEL
    ),
]
Context = Annotated[
    int | None,
    typer.Option(
        "--context",
        help="Longest context in tokens. Default: the model's, at most 8192.",
        show_default=False,
        rich_help_panel=GRAPH_PANEL,
    ),
]
BlockSize = Annotated[
    int | None,
    typer.Option(
        "--block-size",
        help="Input features that share a quantization scale. Default: 32; 128 for fp8.",
        show_default=False,
        rich_help_panel=GRAPH_PANEL,
    ),
]
ActivationType = Annotated[
    Activations,
    typer.Option("--activations", help="Float type that a GPU computes in.", rich_help_panel=GRAPH_PANEL),
]
CacheType = Annotated[
    CachePrecision,
    typer.Option(
        "--kv-precision",
        help="Type of the KV cache on a GPU: that of the activations (auto), or 8 bits.",
        rich_help_panel=GRAPH_PANEL,
    ),
]
WeightSource = Annotated[
    Weights,
    typer.Option("--weights", help="Leave the weights out (none), to measure a geometry with random ones elsewhere."),
]
Symmetric = Annotated[
    bool | None,
    typer.Option(
        "--symmetric/--asymmetric",
        help="Blocks without or with an offset each. Default: with one for int4 except on CUDA.",
        show_default=False,
        rich_help_panel=GRAPH_PANEL,
    ),
]
Head = Annotated[
    HeadPrecision,
    typer.Option(
        "--head",
        help="Precision of the output projection and the embedding; auto is int8.",
        rich_help_panel=GRAPH_PANEL,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict", help="Fail when a fusion fires less often than the model says.", rich_help_panel=GRAPH_PANEL
    ),
]
Dump = Annotated[
    Path | None,
    typer.Option(
        "--dump",
        metavar="DIR",
        help="Write the graph after every pass there.",
        show_default=False,
        rich_help_panel=GRAPH_PANEL,
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        "--threads", help="Threads to compute with. Default: one per physical core.", min=1, show_default=False
    ),
]
MaxBatch = Annotated[int, typer.Option("--max-batch", help="Most rows at once.", rich_help_panel=ENGINE_PANEL)]
Chunk = Annotated[
    int,
    typer.Option(
        "--chunk",
        help="Most prompt tokens of a row in one run; longer prompts run in pieces.",
        rich_help_panel=ENGINE_PANEL,
    ),
]
Capacity = Annotated[
    str | None,
    typer.Option(
        "--capacity",
        metavar="LIST",
        help="Lengths of the KV cache in tokens, an engine each, as 1024,8192; a request runs on the shortest that "
        "holds it. Default: 1024, 8192, … up to the graph's context.",
        show_default=False,
        rich_help_panel=ENGINE_PANEL,
    ),
]
Gpu = Annotated[
    str | None,
    typer.Option(
        "--gpu",
        metavar="LIST",
        help="Compute capabilities to build for, as 8.9,12.0; for tensorrt-rtx alone. Default: all that it can.",
        show_default=False,
        rich_help_panel=ENGINE_PANEL,
    ),
]
StripWeights = Annotated[
    bool,
    typer.Option(
        "--strip-weights",
        help="Engines without weights, which are read from the graph when an engine is opened; a GPU is needed to "
        "build them.",
        rich_help_panel=ENGINE_PANEL,
    ),
]
VerifyWhen = Annotated[
    Verify,
    typer.Option(
        "--verify",
        help="Compare with transformers: where the model fits into memory (auto), always (on), never (off).",
    ),
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON on stdout and nothing else there.", rich_help_panel=REPORT_PANEL)
]
Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="No progress and no log, errors only.", rich_help_panel=REPORT_PANEL)
]
Verbose = Annotated[
    int,
    typer.Option(
        "--verbose",
        "-v",
        count=True,
        help="Log what is done; -vv for everything.",
        show_default=False,
        rich_help_panel=REPORT_PANEL,
    ),
]


def engine_options(
    max_batch: int, chunk: int, capacity: str | None, gpu: str | None, strip_weights: bool, strict: bool
) -> EngineOptions:
    """What to build a TensorRT engine for, from the command line.

    Raises:
        UsageError: a list or a number makes no sense.
    """
    return EngineOptions(
        max_batch=max_batch,
        chunk=chunk,
        capacities=() if capacity is None else number_list("--capacity", capacity),
        capabilities=() if gpu is None else tuple(part.strip() for part in gpu.split(",")),
        strip_weights=strip_weights,
        strict=strict,
    )


def number_list(option: str, text: str) -> tuple[int, ...]:
    """``"128,512"`` -> ``(128, 512)``.

    Raises:
        UsageError: not a list of whole numbers of at least 1.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdigit() and int(part) > 0 for part in parts):
        raise UsageError(f"{option} {text!r} is not a list of positive whole numbers; write it as 128,512")
    return tuple(int(part) for part in parts)
