import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.load.limits import Limits


def test_limits_are_read_in_milliseconds() -> None:
    assert Limits.parse("ttft=500ms, tpot=0.05s") == Limits(500.0, 50.0, None)
    assert Limits.parse("e2el=10s") == Limits(e2e_ms=10_000.0) == Limits.parse("e2e=10000ms")


def test_a_good_request_meets_every_limit() -> None:
    limits = Limits.parse("ttft=500ms,tpot=50ms")
    assert limits.meets(500.0, 50.0, 9e9)
    assert not limits.meets(500.1, 50.0, 0.0)
    assert not limits.meets(500.0, 50.1, 0.0)
    assert not Limits.parse("e2e=1s").meets(1.0, 1.0, 1001.0)


def test_an_answer_of_one_token_has_no_tpot_to_miss_and_one_of_none_is_not_good() -> None:
    limits = Limits.parse("tpot=50ms")
    assert limits.meets(10.0, None, 10.0)
    assert not limits.meets(None, None, None)


@pytest.mark.parametrize("text", ["", "ttft", "ttft=5", "ttft=0ms", "ttft=1s,ttft=2s", "e2e=1s,e2el=2s", "itl=5ms"])
def test_what_is_no_limit_is_refused(text: str) -> None:
    with pytest.raises(UsageError, match="--slo"):
        Limits.parse(text)
