"""How a benchmark is to measure.

In: what a user asked for. Out: :class:`BenchOptions`; a value that makes no sense is a :class:`UsageError`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, TypeAlias

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option
from llmc.compiler.base.options import MOST_THREADS

BenchFormat: TypeAlias = Literal["table", "json", "jsonl", "csv", "md", "llama-bench"]
BenchMode: TypeAlias = Literal["tokens", "text"]
MOST_ROUNDS, MOST_REQUESTS = 10_000, 100_000
"""More would end on no machine, or fill its memory with what was measured."""


@dataclass(frozen=True)
class BenchOptions:
    """How to measure; what a user is asked for says what it means where it is.

    Attributes:
        seed: Of the token ids. Round ``r`` uses ``seed + r``, for all subjects alike.
        warm_steps: Untimed decode steps before each run.
        load_window_s: Seconds that other processes are watched before and after.
        load_warning: Share of the cores, or of the GPU's time, used by others from which the report warns.
    """

    runs: int = option(5, "Rounds; figures are medians.", most=MOST_ROUNDS)
    threads: int | None = option(
        None,
        "Threads of every subject. Default: each engine's own; with a peer, one per physical core.",
        least=1,
        most=MOST_THREADS,
    )
    seed: int = 0
    warm_steps: int = 4
    measure_memory: bool = option(
        True,
        "Measure peak memory and load time in fresh processes, one load for each engine and case.",
        "--memory/--no-memory",
    )
    load_window_s: float = 1.0
    load_warning: float = 0.10
    one_at_a_time: bool = option(
        False,
        "Open one subject, run half of its rounds, close it, and so on; then the second halves in reverse order. For "
        "models that do not fit into memory together.",
    )
    generate: int = option(
        0,
        "Run N requests through the loop of llmc generate, too, --batch at a time, sampling included.",
        metavar="N",
        most=MOST_REQUESTS,
    )
    temperature: float = option(0.0, "Of --generate and --mode text; 0 is greedy.")
    prompts: str | None = option(
        None,
        'Real prompts: a text file with one on each line, or JSON lines (.jsonl) of texts, {"prompt": …} or '
        '{"messages": […]}. Cases get tokens of their text instead of random ones.',
        metavar="FILE",
    )
    mode: BenchMode = option(
        "tokens",
        "tokens: the engine alone; text: the loop that users run too, text in and text out, for each of --prompts.",
    )

    def __post_init__(self) -> None:
        if self.generate < 0:
            raise UsageError(
                f"bench: {self.generate} requests to generate; give at least 1, or leave --generate away"
            )
        if self.mode == "text" and self.prompts is None:
            raise UsageError("bench: --mode text needs texts; give them with --prompts FILE")
        if self.runs < 1 or self.warm_steps < 0 or (self.threads is not None and self.threads < 1):
            raise UsageError("bench: runs and threads must be at least 1, warm_steps at least 0")
