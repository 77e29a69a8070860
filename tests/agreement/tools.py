"""Other programs that measure a runtime: its own benchmark, or a short loop.

In: a model and a case. Out: :class:`Speeds`, as that program says them.

    llama.cpp       llama-bench: a pp test, and a tg test at the prompt's depth
    genai           its benchmark_e2e.py, from a checkout of its repository, with random tokens and greedy
    transformers    transformers_loop.py beside this file

Each call is a process of its own that loads the model, warms up and measures one run.
"""

from __future__ import annotations

import json
import re
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.case import BenchCase

LOOP = Path(__file__).with_name("transformers_loop.py")
WARM_STEPS = 4
GENAI_CONFIG = "genai_config.json"
GENAI_LINES = {
    "ttft": r"Time to First Token: ([\d.e+-]+) ms",
    "step": r"Token Generation Latency \(per token\): ([\d.e+-]+) ms",
}


@dataclass(frozen=True)
class Speeds:
    """Tokens a second of one row: of the prompt until the first token, and of the steps behind it."""

    prefill: float
    decode: float


class Tool(Protocol):
    """Something that measures a runtime in its own way."""

    def measure(self, case: BenchCase, threads: int) -> Speeds:
        """One run of a case.

        Raises:
            EngineError: the program failed, or did not say what it measured.
        """
        ...


@dataclass(frozen=True)
class LlamaBench:
    """``llama-bench`` on a GGUF file, with flash attention."""

    binary: Path
    model: Path

    def measure(self, case: BenchCase, threads: int) -> Speeds:
        """``pp`` of the prompt, then ``tg`` of the steps behind it."""
        prompt = self._rate(threads, "-p", case.prompt, "-n", 0)
        steps = self._rate(threads, "-p", 0, "-n", case.gen - 1, "-d", case.prompt)
        return Speeds(prompt, steps)

    def _rate(self, threads: int, *test: str | int) -> float:
        fixed = ("-m", self.model, "-t", threads, "-fa", "on", "-r", 1, "-o", "json")
        output = run([self.binary, *fixed, *test])
        try:
            (measured,) = json.loads(output)
            return float(measured["avg_ts"])
        except (ValueError, TypeError, KeyError) as error:
            raise EngineError(f"llama-bench did not say one rate:\n{output[-2000:]}") from error


@dataclass(frozen=True)
class GenaiScript:
    """GenAI's ``benchmark_e2e.py``; ``packages``: a folder with what it imports beside GenAI (pandas, psutil)."""

    python: Path
    script: Path
    model: Path
    packages: Path | None = None

    def measure(self, case: BenchCase, threads: int) -> Speeds:
        """Its average time to the first token and of a step, of one run after one to warm up.

        It has no option for threads: they are written into the configuration of a folder of links.
        """
        with tempfile.TemporaryDirectory() as name:
            folder = with_threads(self.model, Path(name) / "model", threads)
            shape = ("-l", case.prompt, "-g", case.gen, "-k", 1, "-w", 1, "-r", 1, "--use_random_tokens")
            words = ("-i", folder, "-e", "cpu", *shape, "--chat_template", "{input}", "-o", Path(name) / "out.csv")
            paths = [self.script.parent, *([self.packages] if self.packages else [])]
            settings = {"PYTHONPATH": ":".join(str(path.resolve()) for path in paths)}
            output = run([self.python, self.script.resolve(), *words], settings)
        found = {key: re.search(pattern, output) for key, pattern in GENAI_LINES.items()}
        ttft, step = found["ttft"], found["step"]
        if ttft is None or step is None:
            raise EngineError(f"{self.script.name} did not say its times:\n{output[-2000:]}")
        return Speeds(1e3 * case.prompt / float(ttft[1]), 1e3 / float(step[1]))


def with_threads(model: Path, folder: Path, threads: int) -> Path:
    """A folder with links to a model's files, whose configuration says how many threads compute."""
    folder.mkdir()
    for file in model.resolve().iterdir():
        if file.name != GENAI_CONFIG:
            (folder / file.name).symlink_to(file)
    config = json.loads((model / GENAI_CONFIG).read_text())
    config["model"]["decoder"].setdefault("session_options", {})["intra_op_num_threads"] = threads
    (folder / GENAI_CONFIG).write_text(json.dumps(config))
    return folder


@dataclass(frozen=True)
class TransformersLoop:
    """``transformers_loop.py`` under an interpreter that has transformers."""

    python: Path
    model: Path
    dtype: str

    def measure(self, case: BenchCase, threads: int) -> Speeds:
        """One run of the loop."""
        shape = (threads, case.prompt, case.gen, WARM_STEPS)
        output = run([self.python, LOOP, self.model, self.dtype, *shape])
        try:
            said = json.loads(output.splitlines()[-1])
            return Speeds(case.prompt / said["first_s"], (case.gen - 1) / said["steps_s"])
        except (ValueError, IndexError, KeyError) as error:
            raise EngineError(f"{LOOP.name} did not say its times:\n{output[-2000:]}") from error


def run(command: Sequence[object], settings: Mapping[str, str] | None = None) -> str:
    """What a program writes.

    Raises:
        EngineError: it cannot be started or fails; the end of what it wrote.
    """
    words = ["env", *(f"{key}={value}" for key, value in (settings or {}).items()), *map(str, command)]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EngineError(f"{command[0]} failed (status {done.returncode})\n{(done.stdout + done.stderr)[-2000:]}")
    return done.stdout
