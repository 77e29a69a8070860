"""When requests arrive that wait for nobody (an open loop).

In: a rate, how regular arrivals are, a seed. Out: moments, in seconds since the begin, without an end.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from llmc.runtimes.bench.load.options import Arrivals


def arrival_times(kind: Arrivals, rate: float, burstiness: float, seed: tuple[int, ...]) -> Iterator[float]:
    """Sums of gaps whose mean is ``1 / rate``.

    Args:
        kind: ``poisson``: exponential gaps, as those of many people who know nothing of each other; ``gamma``: of
            shape ``burstiness`` (vLLM's definition), in bursts below 1 and more regular above it; ``constant``.
        rate: Requests a second.
        burstiness: Of gamma alone. The gaps' standard deviation is their mean over its square root.
        seed: Of the gaps.
    """
    random, moment = np.random.default_rng(seed), 0.0
    while True:
        if kind == "constant":
            moment += 1 / rate
        else:
            shape = burstiness if kind == "gamma" else 1.0
            moment += float(random.gamma(shape, 1 / (rate * shape)))
        yield moment
