import numpy as np
import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.load.lengths import Lengths


def drawn(text: str, count: int = 4000) -> list[int]:
    lengths, random = Lengths.parse("--input-len", text), np.random.default_rng(1)
    return [lengths.draw(random) for _ in range(count)]


def test_one_number_is_always_that() -> None:
    assert set(drawn("128", 5)) == {128}
    assert Lengths.parse("--input-len", "128").most == 128


def test_a_range_is_evenly_spread_with_both_ends() -> None:
    numbers = drawn("3-6")
    assert set(numbers) == {3, 4, 5, 6}
    assert min(numbers.count(each) for each in (3, 4, 5, 6)) > 900


def test_a_mean_and_a_deviation() -> None:
    numbers = drawn("100~10")
    assert abs(np.mean(numbers) - 100) < 1
    assert abs(np.std(numbers) - 10) < 1
    lengths = Lengths.parse("--input-len", "100~10")
    assert (lengths.least, lengths.most) == (60, 140)


def test_nothing_is_shorter_than_a_token() -> None:
    assert min(drawn("2~50")) == 1
    assert max(drawn("2~50")) <= Lengths.parse("--input-len", "2~50").most == 202


@pytest.mark.parametrize("text", ["", "0", "-3", "8-4", "many", "3-", "1.5", "4~", "10000001", "1-99999999999"])
def test_what_is_no_length_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--output-len"):
        Lengths.parse("--output-len", text)
