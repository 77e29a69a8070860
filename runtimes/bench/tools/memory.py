"""Peak memory and time of a compile as the model grows: ``python -m llmc.runtimes.bench.tools.memory``.

In: numbers of layers. Out: a table and JSON: peak RSS and wall time of ``llmc compile`` on a random checkpoint of 8B
layer geometry with so many layers, and the ratio of the peaks. A compile that streams its weights has a ratio near 1.

    python -m llmc.runtimes.bench.tools.memory --layers 8,16 --json F
    python -m llmc.runtimes.bench.tools.memory --layers 2,4 --gptq       # of a checkpoint in GPTQ, kept as it is

One number of layers at a time is on the disk; what was written is deleted afterwards unless ``--keep`` is given.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from llmc.compiler.base.errors import EngineError, LlmcError
from llmc.runtimes.bench.tools.process_memory import run_measured
from llmc.runtimes.bench.tools.random_weights import check_disk
from llmc.runtimes.bench.tools.synthetic import LlamaGeometry, write_checkpoint
from llmc.runtimes.bench.tools.synthetic_gptq import checkpoint_bytes, write_gptq_checkpoint
from llmc.runtimes.machine.fingerprint import MachineFingerprint, machine_fingerprint

COMPILE = (sys.executable, "-P", "-c", "from llmc.compiler.cli.app import main; main()", "compile")
COMPILE_OPTIONS = ("--target", "cpu", "--precision", "int4", "--verify", "off")
KEEP = "--keep-quantization"
# The checkpoint, a portable graph that may hold float32, and the artifact.
DISK_FACTOR = 3.5


@dataclass(frozen=True)
class CompileMemory:
    """One compile: its checkpoint, all files that it wrote, and what :class:`~.process_memory.CommandUsage` says."""

    layers: int
    checkpoint_bytes: int
    artifact_bytes: int
    peak_rss_bytes: int
    peak_anonymous_bytes: int
    wall_s: float


@dataclass(frozen=True)
class MemoryReport:
    """All compiles of one benchmark, in the order of layers given."""

    machine: MachineFingerprint
    options: tuple[str, ...]
    compiles: tuple[CompileMemory, ...]

    @property
    def peak_ratios(self) -> tuple[float, ...]:
        """Peak RSS of each compile over the first one's."""
        return tuple(each.peak_rss_bytes / self.compiles[0].peak_rss_bytes for each in self.compiles)

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {
            "schema_version": 1,
            "machine": self.machine.to_json(),
            "options": list(self.options),
            "compiles": [asdict(each) for each in self.compiles],
            "peak_ratios": list(self.peak_ratios),
        }


def measure_compile(
    geometry: LlamaGeometry,
    workspace: Path,
    *,
    command: Sequence[str] = COMPILE,
    options: Sequence[str] = COMPILE_OPTIONS,
    keep: bool = False,
) -> CompileMemory:
    """Write (or reuse) the checkpoint in ``workspace``, compile it in a subprocess, and delete both unless ``keep``.

    It is in GPTQ's layout where the options ask for what a checkpoint holds to be kept.

    Raises:
        ArtifactError: not enough room on the disk, or the checkpoint cannot be written.
        EngineError: the compile failed; the message carries the end of its output.
    """
    workspace.mkdir(parents=True, exist_ok=True)
    advice = "free some, name another --workspace, or use fewer layers"
    write = write_gptq_checkpoint if KEEP in options else write_checkpoint
    size = checkpoint_bytes(geometry) if KEEP in options else geometry.checkpoint_bytes
    check_disk(workspace, int(size * DISK_FACTOR), advice)
    checkpoint = workspace / f"llama-{geometry.hidden}-{geometry.layers}-layers{'-gptq' if KEEP in options else ''}"
    artifact = workspace / f"{checkpoint.name}-int4"
    try:
        shutil.rmtree(artifact, ignore_errors=True)
        write(checkpoint, geometry)
        usage = run_measured([*command, str(checkpoint), "-o", str(artifact), *options])
        if usage.returncode != 0:
            raise EngineError(f"the compile ended with status {usage.returncode}:\n{usage.output.strip()}")
        written = sum(file.stat().st_size for file in artifact.rglob("*") if file.is_file())
    finally:
        if not keep:
            shutil.rmtree(artifact, ignore_errors=True)
            shutil.rmtree(checkpoint, ignore_errors=True)
    return CompileMemory(
        layers=geometry.layers,
        checkpoint_bytes=size,
        artifact_bytes=written,
        peak_rss_bytes=usage.peak_rss_bytes,
        peak_anonymous_bytes=usage.peak_anonymous_bytes,
        wall_s=usage.wall_s,
    )


def render_memory(report: MemoryReport) -> Table:
    """One row per compile."""
    table = Table(title=f"llmc compile {' '.join(report.options)}")
    for heading in ("layers", "checkpoint", "artifact", "peak RSS", "not file-backed", "of the first", "time"):
        table.add_column(heading, justify="right")
    for each, ratio in zip(report.compiles, report.peak_ratios, strict=True):
        sizes = (each.checkpoint_bytes, each.artifact_bytes, each.peak_rss_bytes, each.peak_anonymous_bytes)
        cells = (f"{size / 1e9:.2f} GB" for size in sizes)
        table.add_row(str(each.layers), *cells, f"{ratio:.3f}", f"{each.wall_s:.0f} s")
    return table


def positive_numbers(text: str) -> tuple[int, ...]:
    """``"128,512"`` -> ``(128, 512)``; what is not a list of positive whole numbers is refused as argparse does."""
    try:
        values = tuple(int(part) for part in text.split(","))
    except ValueError:
        values = ()
    if not values or min(values) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of positive numbers, as 128,512")
    return values


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="llmc.runtimes.bench.tools.memory", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--layers", type=positive_numbers, default=(8, 16), help="numbers of layers, as 8,16")
    parser.add_argument("--gptq", action="store_true", help="a checkpoint in GPTQ's layout, kept as it is")
    parser.add_argument("--workspace", type=Path, help="directory to write into (default: a temporary one)")
    parser.add_argument("--keep", action="store_true", help="leave checkpoints and artifacts for the next time")
    parser.add_argument("--json", type=Path, help="write the report to this file")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit status (an :class:`LlmcError`'s own code when one is raised)."""
    options = _parser().parse_args(arguments)
    console = Console()
    workspace = options.workspace or Path(tempfile.mkdtemp(prefix="llmc-memory-"))
    asked = (*COMPILE_OPTIONS, KEEP) if options.gptq else COMPILE_OPTIONS
    compiles = []
    try:
        for layers in options.layers:
            console.print(f"{layers} layers: writing a checkpoint, compiling it …")
            compiles.append(measure_compile(LlamaGeometry(layers), workspace, options=asked, keep=options.keep))
    except LlmcError as error:
        Console(stderr=True).print(f"error: {error}", markup=False, highlight=False, soft_wrap=True)
        return error.exit_code
    finally:
        if options.workspace is None and not options.keep:
            shutil.rmtree(workspace, ignore_errors=True)
    report = MemoryReport(machine_fingerprint(), asked, tuple(compiles))
    console.print(render_memory(report))
    if options.json is not None:
        options.json.write_text(json.dumps(report.to_json(), indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
