"""Do llmc eval and llama-perplexity agree? ``python -m tests.quality.llama_perplexity --binary FILE …``.

In: a model as a Hugging Face directory, the same as a GGUF file in float, quantized GGUF files, an installed
``llama-perplexity`` and an interpreter that has ``llama-cpp-python``. Out: both programs' figures of each file, side
by side. Ends with 1 where they differ by more than :data:`TOLERANCES`, or where the two make other tokens of a text.

    MODEL ──▶ transformers ──▶ reference's logits ─┐       FLOAT ──▶ llama-perplexity ──▶ base file ─┐
    FILE ───▶ llama-cpp-python ──▶ its logits ─────┴─▶     FILE ───▶ llama-perplexity ───────────────┴─▶

So the float models, the cut into windows, the scored positions and the formulas are all compared at once.
"""

from __future__ import annotations

import argparse
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table

from llmc.compiler.base.errors import LlmcError
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.driver.evaluation import evaluate, logits_peers, open_reference
from llmc.runtimes.evaluation.options import WINDOW, EvaluationOptions
from llmc.runtimes.evaluation.text_windows import text_windows
from llmc.runtimes.evaluation.texts import evaluation_text, read_texts

Tokens = npt.NDArray[np.int64]
TOLERANCES = {
    "reference ppl": 1e-3,
    "ppl": 1e-3,
    "mean_kl": 0.02,
    "median_kl": 0.03,
    "kl_p90": 0.03,
    "kl_p99": 0.05,
    "top1_agreement": 0.005,
    "rms_delta_p": 0.02,
}
"""Largest relative differences. Beside arithmetic, llama-perplexity leaves the unlikeliest tokens out of a
divergence, and the two run a float model in kernels of their own."""
MAGIC = b"_logits_"
PATTERNS = {
    "ppl": r"Mean PPL\(Q\)\s*:\s*([-\d.]+)",
    "reference ppl": r"Mean PPL\(base\)\s*:\s*([-\d.]+)",
    "ppl_ratio": r"Mean PPL\(Q\)/PPL\(base\)\s*:\s*([-\d.]+)",
    "mean_kl": r"Mean\s+KLD:\s*([-\d.]+)",
    "max_kl": r"Maximum KLD:\s*([-\d.]+)",
    "kl_p999": r"99\.9%\s+KLD:\s*([-\d.]+)",
    "kl_p99": r"99\.0%\s+KLD:\s*([-\d.]+)",
    "kl_p95": r"95\.0%\s+KLD:\s*([-\d.]+)",
    "kl_p90": r"90\.0%\s+KLD:\s*([-\d.]+)",
    "median_kl": r"Median\s+KLD:\s*([-\d.]+)",
    "mean_delta_p": r"Mean\s+Δp:\s*([-\d.]+)",
    "rms_delta_p": r"RMS Δp\s*:\s*([-\d.]+)",
    "top1_agreement": r"Same top p:\s*([-\d.]+)",
}
"""Our name of a figure -> llama-perplexity's line."""
PERCENT = {"mean_delta_p", "rms_delta_p", "top1_agreement"}


def read_figures(output: str, names: Iterable[str] = PATTERNS) -> dict[str, float]:
    """Figures of ``llama-perplexity --kl-divergence``, by our names, shares as numbers from 0 to 1.

    Raises:
        ValueError: one of them is not there.
    """
    figures = {}
    for name in names:
        found = re.search(PATTERNS[name], output)
        if found is None:
            raise ValueError(f"llama-perplexity printed no {name}:\n{output[-2000:]}")
        figures[name] = float(found[1]) / (100 if name in PERCENT else 1)
    return figures


def read_tokens(path: Path) -> Tokens:
    """The tokens of a base file, [windows, length].

    Raises:
        ValueError: it is no such file.
    """
    with path.open("rb") as file:
        if file.read(8) != MAGIC:
            raise ValueError(f"{path} holds no logits of llama-perplexity")
        length, _, windows = struct.unpack("<Iii", file.read(12))
        tokens = np.frombuffer(file.read(4 * length * windows), "<i4")
    return tokens.reshape(windows, length).astype(np.int64)


def same_windows(theirs: Tokens, ours: Tokens) -> bool:
    """Whether both cut the text alike; a later window's first token llama-perplexity overwrites when it runs it."""
    return theirs.shape == ours.shape and bool((theirs[:, 1:] == ours[:, 1:]).all() and theirs[0, 0] == ours[0, 0])


def differences(theirs: Mapping[str, float], ours: Mapping[str, float]) -> dict[str, float]:
    """By how much a figure of ours differs, relative to theirs."""
    return {name: abs(ours[name] - theirs[name]) / abs(theirs[name]) for name in TOLERANCES if theirs[name]}


def beyond(theirs: Mapping[str, float], ours: Mapping[str, float]) -> list[str]:
    """Figures that differ by more than is tolerated."""
    return [name for name, difference in differences(theirs, ours).items() if difference > TOLERANCES[name]]


class LlamaPerplexity:
    """The program, on one text."""

    def __init__(self, binary: Path, text: Path, base: Path, threads: int, window: int, windows: int) -> None:
        shape = ["-c", str(window), "--chunks", str(windows)]
        self._command = [str(binary), "-f", str(text), "--kl-divergence-base", str(base), "-t", str(threads), *shape]

    def record(self, model: Path) -> None:
        """Run the float model and write the base file."""
        self._run("-m", str(model))

    def compare(self, model: Path) -> dict[str, float]:
        """Figures of a model against the base file."""
        return read_figures(self._run("-m", str(model), "--kl-divergence"))

    def _run(self, *arguments: str) -> str:
        done = subprocess.run([*self._command, *arguments], capture_output=True, text=True, check=False)
        if done.returncode:
            raise ValueError(f"llama-perplexity failed ({done.returncode}):\n{done.stderr[-2000:]}")
        return done.stdout + done.stderr


def our_figures(model: str, peers: Sequence[str], options: EvaluationOptions) -> list[dict[str, Any]]:
    """llmc eval's, of each peer."""
    report = evaluate([], logits_peers(peers), model, options, ExportOptions(), progress=NO_PROGRESS)
    return [{**row.to_json(), "reference ppl": report.reference.perplexity.value} for row in report.rows]


def table(name: str, theirs: Mapping[str, float], ours: Mapping[str, float]) -> Table:
    """Both programs' figures of one file."""
    result = Table("figure", "llama-perplexity", "llmc eval", "difference", "tolerated", title=name)
    apart = differences(theirs, ours)
    for figure in PATTERNS:
        difference = f"{apart[figure]:.2%}" if figure in apart else ""
        tolerated = f"{TOLERANCES[figure]:.1%}" if figure in TOLERANCES else ""
        result.add_row(figure, f"{theirs[figure]:.6f}", f"{ours[figure]:.6f}", difference, tolerated)
    return result


def check(options: argparse.Namespace, folder: Path) -> int:
    """Run both programs on all files; 1 where they disagree."""
    asked = EvaluationOptions(options.text, options.tokens, options.window, options.threads)
    texts = (evaluation_text(),) if options.text is None else read_texts(options.text)
    tokenizer = open_reference(options.model, ExportOptions(), None).tokenizer
    windows = text_windows(tokenizer, texts, options.window, tokens=options.tokens)
    text, base = folder / "text.txt", options.base or folder / "base"
    text.write_text("\n\n".join(texts), encoding="utf-8")
    program = LlamaPerplexity(options.binary, text, base, options.threads or 1, options.window, len(windows))
    if not base.is_file():
        program.record(options.float)
    console = Console()
    if not same_windows(read_tokens(base), windows):
        console.print("the two programs cut the text into other tokens")
        return 1
    console.print(f"both cut the text into the same {len(windows)} windows of {options.window} tokens")
    peers = [f"llamacpp-python={options.peer_python}:{file}" for file in options.gguf]
    wrong = []
    for file, ours in zip(options.gguf, our_figures(options.model, peers, asked), strict=True):
        theirs = program.compare(file)
        console.print(table(file.name, theirs, ours))
        wrong += [f"{file.name}: {name}" for name in beyond(theirs, ours)]
    console.print(f"beyond tolerance: {', '.join(wrong)}" if wrong else "the two programs agree")
    return 1 if wrong else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.quality.llama_perplexity", description=__doc__)
    parser.add_argument("--binary", type=Path, required=True, help="llama-perplexity")
    parser.add_argument("--model", required=True, help="the model that llmc eval runs in transformers")
    parser.add_argument("--float", type=Path, help="the same model as a GGUF file in float")
    parser.add_argument("--base", type=Path, help="what llama-perplexity wrote of it; made from --float if not there")
    parser.add_argument("--gguf", type=Path, action="append", required=True, help="quantized files; repeatable")
    parser.add_argument("--peer-python", type=Path, required=True, help="interpreter that has llama-cpp-python")
    parser.add_argument("--text", type=Path, help="default: llmc's evaluation text")
    parser.add_argument("--tokens", type=int)
    parser.add_argument("--window", type=int, default=WINDOW)
    parser.add_argument("--threads", type=int)
    options = parser.parse_args()
    if options.float is None and options.base is None:
        parser.error("name the model as a GGUF file with --float, or a --base that was made of it")
    try:
        with tempfile.TemporaryDirectory() as folder:
            return check(options, Path(folder))
    except (LlmcError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
