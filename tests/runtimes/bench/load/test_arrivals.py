from itertools import islice

import numpy as np
import pytest

from llmc.runtimes.bench.load.arrivals import arrival_times
from llmc.runtimes.bench.load.options import Arrivals


def gaps(kind: Arrivals, rate: float = 4.0, burstiness: float = 1.0, seed: int = 3) -> np.ndarray:
    return np.diff([0.0, *islice(arrival_times(kind, rate, burstiness, (seed,)), 20_000)])


@pytest.mark.parametrize(
    ("kind", "burstiness", "variation"),
    [("poisson", 1.0, 1.0), ("gamma", 0.25, 2.0), ("gamma", 4.0, 0.5), ("constant", 1.0, 0.0)],
)
def test_the_mean_is_the_rate_and_the_variation_that_of_the_kind(
    kind: Arrivals, burstiness: float, variation: float
) -> None:
    found = gaps(kind, burstiness=burstiness)
    assert abs(found.mean() - 0.25) < 0.01
    assert abs(found.std() / found.mean() - variation) < 0.05


def test_poisson_gaps_are_exponential() -> None:
    assert abs((gaps("poisson") > 0.25).mean() - np.exp(-1)) < 0.01


def test_the_same_seed_gives_the_same_arrivals() -> None:
    assert (gaps("poisson") == gaps("poisson")).all()
    assert (gaps("poisson") != gaps("poisson", seed=4)).any()
