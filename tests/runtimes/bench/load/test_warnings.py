from llmc.runtimes.bench.load.options import LoadOptions, PointPlan
from llmc.runtimes.bench.load.records import LoadPoint
from llmc.runtimes.bench.load.warnings import load_warnings

from .samples import exchange, failed, point_of

MANY = [exchange(at / 10, at / 10 + 0.2, at / 10 + 0.3) for at in range(90)]


def warned(point: LoadPoint, **options: object) -> str:
    return "\n".join(load_warnings([point], LoadOptions(**options)))  # type: ignore[arg-type]


def test_a_quiet_run_warns_of_nothing() -> None:
    assert warned(point_of(*MANY)) == ""


def test_what_failed_is_named() -> None:
    point = point_of(*MANY, failed(0.0, "HTTP 503: busy", 1.0), failed(0.0, "no token: empty", 1.0))
    assert "2 of 92 requests failed: 1 of HTTP 503, 1 of no token" in warned(point)


def test_a_late_generator_is_named() -> None:
    point = point_of(*MANY, exchange(0.0, 0.5, 0.6, late_s=5.0))
    assert "the generator is the bottleneck" in warned(point)


def test_few_requests_and_chunks_instead_of_tokens() -> None:
    text = warned(point_of(exchange(0.0, 1.0, counted_by="chunks")))
    assert "1 requests were answered, too few" in text
    assert "--tokenizer" in text


def test_more_arrivals_than_answers_are_an_overload_where_nobody_waits() -> None:
    piled = [exchange(at / 10, 20.0 + at, 21.0 + at) for at in range(100)]
    assert "more arrived than was answered (10 and 0 a second)" in warned(point_of(*piled, plan=PointPlan(rate=10.0)))
    assert "more arrived" not in warned(point_of(*piled, plan=PointPlan(users=100)))
    assert "more arrived" not in warned(point_of(*MANY, plan=PointPlan(rate=10.0)))


def test_answers_that_end_early_and_prompts_from_a_cache() -> None:
    point = point_of(*MANY, exchange(0.0, 0.2, 0.3, asked=9, cached_tokens=8))
    assert "1 of 91 answers ended before" in warned(point)
    assert "came from the server's cache" in warned(point)
    assert "cache" not in warned(point, shared_prefix=5)
    assert "ended before" not in warned(point, ignore_eos=False)


def test_an_interrupted_point() -> None:
    assert "incomplete" in warned(point_of(*MANY, is_interrupted=True))
