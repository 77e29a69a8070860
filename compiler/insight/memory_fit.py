"""Whether the memory that an engine needs is free on this machine.

In: an artifact, the machine's GPUs, a context, a batch. Out: :class:`MemoryFit`: the plan, what is free, and, where
that does not suffice, the sentence that says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from llmc.compiler.base.errors import EngineError
from llmc.compiler.base.options import DEFAULT_CONTEXT
from llmc.compiler.base.targets import get_target
from llmc.runtimes.machine.fingerprint import GpuDescription, machine_fingerprint
from llmc.runtimes.memory.facts import read_facts
from llmc.runtimes.memory.plan import MemoryPlan, check_fits, plan_memory


@dataclass(frozen=True)
class MemoryFit:
    """Whether an engine's memory is free here.

    Attributes:
        plan: What it needs.
        where: Whose memory is meant, as ``GPU 0 (NVIDIA H100)``.
        free_bytes: What is free there; None where that is not known.
        problem: Why it does not fit, one sentence; None when it does.
    """

    plan: MemoryPlan
    where: str
    free_bytes: int | None
    problem: str | None

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {
            "plan": self.plan.to_json(),
            "where": self.where,
            "free_bytes": self.free_bytes,
            "fits": self.problem is None,
            "problem": self.problem,
        }


def check_memory(
    directory: Path,
    gpus: Sequence[GpuDescription],
    *,
    context: int | None = None,
    batch: int = 1,
    chunk: int | None = None,
) -> MemoryFit:
    """Compare what an engine needs with what is free: on the first GPU, or in the machine's memory for a CPU engine.

    Args:
        directory: An artifact.
        gpus: This machine's.
        context: Tokens that each row has room for; None: the engine's longest context.
        batch: Rows.
        chunk: Most prompt tokens per row at once; None: a whole context.

    Raises:
        ArtifactError: the directory is no artifact.
        UsageError: a number below 1, or a context that the engine has not.
    """
    facts = read_facts(directory)
    plan = plan_memory(facts, facts.max_context or DEFAULT_CONTEXT if context is None else context, batch, chunk)
    if get_target(facts.target).device == "gpu":
        if not gpus:
            return MemoryFit(
                plan, "no GPU", None, f"{directory} runs on a GPU, and nvidia-smi finds no NVIDIA GPU here"
            )
        where, free = f"GPU 0 ({gpus[0].name})", gpus[0].free_bytes
        if free is None:
            return MemoryFit(plan, where, None, f"nvidia-smi does not say how much memory of {where} is free")
    else:
        where = "this machine"
        free = min(psutil.virtual_memory().available, machine_fingerprint().memory_bytes)
    try:
        check_fits(plan, free, where)
    except EngineError as error:
        return MemoryFit(plan, where, free, str(error))
    return MemoryFit(plan, where, free, None)
