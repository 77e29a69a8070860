"""How long a calibration will take: its operations, and how many this machine does in a second.

In: steps, which sites are solved, tokens. Out: operations of each step; the machine's rate, measured on one product;
words for people.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable

import numpy as np

from llmc.compiler.calibration.expert_layer import ExpertLayer
from llmc.compiler.calibration.expert_walk import ENOUGH, OTHERS
from llmc.compiler.calibration.matrices import GPU_ROWS
from llmc.compiler.calibration.steps import Step
from llmc.passes.quantization.sites import Site

SEARCH = 1000
"""Operations for each weight in searching grids: some ratios, a few fits each, a dozen operations on every weight."""
OVERHEAD = 3.2
"""What a walk took, in units of its products alone at the measured rate: attention, norms, copies, files, products of
other shapes (two cores of an EPYC, Zen 5: 3.7 for SmolLM2-135M, 98 s; 2.7 for a layer of 8B geometry, 259 s)."""
GPU_RATE, GPU_FEATURE, GPU_NUMBER = 40e12, 150e-6, 32e-9
"""Of a walk with a GPU: operations a second in products; seconds to solve a feature of some rows, which is a dozen
small kernels; and seconds of one processor for each number that products read and make, since all between them is
computed there. Those give what an H200 took for SmolLM2-135M (89 s beside 4 threads), for eight layers of 8B geometry
(231 s beside 3) and for walks that solve nothing (5 and 25 s)."""
SEEN, SEEN_SECONDS, OFF = 0.05, 20.0, 1.5
"""Share of the work, and seconds, after which its pace is known; the ratio from which a user is told."""
_SIZE, _LEAST_SECONDS = 768, 0.15


def operations(step: Step, tokens: int, streams: int, calibrated: Callable[[Site], bool]) -> float:
    """Additions and multiplications of a step over all tokens, in ``streams`` streams."""
    group = step.group
    if group is not None and group.experts is not None:
        return _of_experts(group.experts, tokens, streams, solved=calibrated(group.sites[0]), runs=bool(step.keeps))
    if group is None or not group.is_product:
        return 0.0
    weights = sum(height * features for height, features in _shapes(group.sites))
    total = 2.0 * tokens * weights * streams if step.keeps else 0.0
    solved = [site for site in group.sites if calibrated(site)]
    if solved:
        features = group.sites[0].weights[0][1].stored_shape[1]
        total += tokens * features**2 * (1 + 2 * (streams - 1)) + features**3 * (1 + 2 * (streams - 1))
        total += sum(height * (features**2 * streams + features * SEARCH) for height, features in _shapes(solved))
    return total


def gpu_seconds(step: Step, tokens: int, streams: int, calibrated: Callable[[Site], bool], threads: int) -> float:
    """What a step takes where its products, and what is solved, are a GPU's."""
    group = step.group
    work = operations(step, tokens, streams, calibrated)
    if group is not None and group.experts is not None:
        layer, (both, hidden) = group.experts, (0, group.experts.first[0].features)
        if calibrated(group.sites[0]):
            both = layer.count * sum(item[0].features for item in (layer.first, layer.second))
        return work / GPU_RATE + both * GPU_FEATURE + 2 * tokens * streams * hidden * GPU_NUMBER / threads
    if group is None or not group.is_product:
        return 0.0
    shapes, features = _shapes(group.sites), group.sites[0].weights[0][1].stored_shape[1]
    solved = _shapes(site for site in group.sites if calibrated(site))
    columns = sum(width * math.ceil(height / GPU_ROWS) for height, width in solved)
    numbers = tokens * streams * (features + (sum(height for height, _ in shapes) if step.keeps else 0))
    return work / GPU_RATE + columns * GPU_FEATURE + numbers * GPU_NUMBER / threads


def _of_experts(layer: ExpertLayer, tokens: int, streams: int, *, solved: bool, runs: bool) -> float:
    """Of a layer of experts, each of which gets its share of the tokens."""
    share = tokens * layer.chosen / layer.count
    shapes = [(item[0].height, item[0].features) for item in (layer.first, layer.second)]
    total = 2.0 * tokens * layer.chosen * sum(height * features for height, features in shapes) * streams * runs
    if solved and share < ENOUGH * shapes[0][1]:
        total += min(OTHERS, tokens) * shapes[0][1] ** 2 * (1 + 2 * (streams - 1))
    for place, (height, features) in enumerate(shapes if solved else []):
        others = min(OTHERS, ENOUGH * features, tokens) if place and share < ENOUGH * features else 0
        read = share + others
        each = (read * features**2 + features**3) * (1 + 2 * (streams - 1))
        each += height * (features**2 * streams + features * SEARCH)
        # What the second product reads is made of what the first one does.
        each += 2.0 * read * shapes[0][0] * shapes[0][1] * streams * place
        total += layer.count * each
    return total


def measured_rate(threads: int) -> float:
    """Operations a second of ``threads`` threads in float32 products, from one thread's."""
    import torch

    from llmc.compiler.quantization.products import product, right_hand

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        x = torch.from_numpy(np.ones((_SIZE, _SIZE), np.float32))
        right = right_hand(x)
        start, count = time.perf_counter(), 0
        while (elapsed := time.perf_counter() - start) < _LEAST_SECONDS:
            product(x, right)
            count += 1
    finally:
        torch.set_num_threads(before)
    return 2.0 * _SIZE**3 * count / elapsed * threads


def estimate_words(seconds: float, rate: float | None, with_gpu: float) -> str:
    """``about 4 minutes here, reckoned from 150 GFLOP/s as just measured; about 2 minutes with a GPU …``.

    Args:
        seconds: That it takes here.
        rate: Operations a second; None: torch has a GPU.
        with_gpu: Seconds that it would take with one.
    """
    if rate is None:
        return f"about {duration_words(seconds)} with this GPU, by what an H200 took"
    return (
        f"about {duration_words(seconds)} here, reckoned from {rate / 1e9:.0f} GFLOP/s as just measured; "
        f"about {duration_words(with_gpu)} with a GPU that torch can use, by what an H200 took"
    )


class Pace:
    """How long work takes, said once more where its first parts took much more or much less time than was said.

    Attributes:
        work: In any unit.
        seconds: That were said.
    """

    def __init__(self, work: float, seconds: float) -> None:
        """Nothing is done yet."""
        self.work, self.seconds = work, seconds
        self._restated = False

    def restated(self, done: float, elapsed: float) -> float | None:
        """Seconds that all of it takes, once.

        Args:
            done: Work that is done.
            elapsed: Seconds that it took.

        Returns:
            None where that was said, or too little is done to tell.
        """
        if self._restated or done < SEEN * self.work or elapsed < SEEN_SECONDS:
            return None
        takes = elapsed / done * self.work
        if max(takes / self.seconds, self.seconds / takes) <= OFF:
            return None
        self._restated = True
        return takes


def duration_words(seconds: float) -> str:
    """A duration as one says it."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"


def _shapes(sites: Iterable[Site]) -> list[tuple[int, int]]:
    return [(site.weights[0][1].stored_shape[0], site.weights[0][1].stored_shape[1]) for site in sites]
