"""What ``llmc bench`` looks at beside its cases.

In: options. Out: :class:`Studies`, and the plans that carry them out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from llmc.compiler.base.option_field import number_list, option

if TYPE_CHECKING:
    from llmc.runtimes.bench.case import BenchCase
    from llmc.runtimes.bench.latency import StudyPlan


@dataclass(frozen=True)
class Studies:
    """What is looked at beside the cases."""

    curve: bool = option(
        False,
        "Measure steps of 1, 2, 3, 4, 8, 16 and 32 tokens, too (rows at a time), and name those that are slower than "
        "two of half as many.",
        "--curve/--no-curve",
    )
    contexts: tuple[int, ...] = option(
        (),
        "Measure steps with so many tokens in the cache, too, as 128,1024,4096,8192,32768; lengths beyond an "
        "engine's context are left out, in a line.",
        "--contexts",
        metavar="N[,N…]",
        parse=number_list,
    )

    operators: bool = option(
        False,
        "Run each case once more under the runtime's profiler and show where the time goes, by kind of operator: "
        "products, attention, norms, sampling (ONNX Runtime on the CPU).",
        "--operators/--no-operators",
    )
    quality: tuple[str, ...] = option(
        (),
        "What llmc eval --json wrote, or a directory of such files; repeatable. What llmc eval measured of the same "
        "files on this machine is known without it.",
        "--quality",
        metavar="FILE",
    )

    def plans(
        self, directories: Sequence[Path], labels: Sequence[str], cases: tuple[BenchCase, ...]
    ) -> list[StudyPlan]:
        """Roofline and quality, which cost nothing, and what was asked for.

        Raises:
            UsageError: a context that is shorter than the steps, or a file that is no evaluation.
        """
        from llmc.compiler.driver.step_work import works_of
        from llmc.runtimes.bench.operators_plan import OperatorsPlan
        from llmc.runtimes.bench.quality import read_evaluations
        from llmc.runtimes.bench.quality_plan import QualityPlan
        from llmc.runtimes.bench.roofline_plan import RooflinePlan
        from llmc.runtimes.bench.sweep_plan import SweepPlan

        qualities = QualityPlan(tuple(read_evaluations(map(Path, self.quality))))
        plans: list[StudyPlan] = [RooflinePlan(works_of(dict(zip(labels, directories, strict=True)))), qualities]
        if self.curve:
            plans.append(SweepPlan.curve())
        if self.contexts:
            plans.append(SweepPlan.contexts(self.contexts))
        if self.operators:
            plans.append(OperatorsPlan(cases))
        return plans
