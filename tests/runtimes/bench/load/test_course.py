import math
from typing import Any

from llmc.runtimes.bench.load.course import PAUSE_S, ClosedStarts, Course, Job, OpenStarts, Starts, Window
from llmc.runtimes.bench.load.workload import Work


def make_course(starts: Starts, window: Window, **options: Any) -> Course[int]:
    return Course(starts, window, lambda number: Work("p", number + 1), lambda work: work.output, **options)


def scheduled(jobs: list[Job[int]]) -> list[tuple[int, float, str]]:
    return [(job.number, job.scheduled_s, job.phase) for job in jobs]


def test_requests_are_due_at_their_moments_whatever_became_of_those_before() -> None:
    course = make_course(OpenStarts(iter([0.5, 1.0, 1.5, 9.0])), Window(1.0, 2.0))
    assert course.due(0.4) == []
    assert course.next_due() == 0.5
    # The generator slept too long: three are due, each with the moment at which it should have been sent.
    assert scheduled(course.due(2.0)) == [(0, 0.5, "warm-up"), (1, 1.0, "measured"), (2, 1.5, "measured")]
    assert course.running == 3
    assert course.next_due() == 9.0


def test_the_load_goes_on_until_the_last_request_that_counts_is_answered() -> None:
    course = make_course(OpenStarts(iter([0.0, 1.0, 2.5, 4.0])), Window(0.5, 1.5))
    warm, counted = course.due(1.0)
    course.ended(warm, 1.5)
    assert not course.is_over(1.9)
    assert not course.is_over(2.0), "one that counts is under way"
    (late,) = course.due(3.0)
    assert late.phase == "cool-down"
    assert course.window.closed_s == 2.0
    course.ended(counted, 3.5)
    assert course.is_over(3.5), "the one that does not count is not waited for"


def test_a_number_of_requests_closes_the_window_at_the_next_one() -> None:
    course = make_course(OpenStarts(iter([0.0, 1.0, 2.0, 3.0])), Window(0.0, 100.0, requests=2))
    assert [job.phase for job in course.due(1.0)] == ["measured", "measured"]
    assert course.window.closed_s is None
    assert [job.phase for job in course.due(2.0)] == ["cool-down"]
    assert (course.window.closed_s, course.window.counted) == (2.0, 2)


def test_users_begin_one_after_the_other_and_ask_again_when_answered() -> None:
    course = make_course(ClosedStarts(2, 4.0), Window(4.0, 10.0))
    (first,) = course.due(0.5)
    assert (first.scheduled_s, course.next_due()) == (0.0, 1.0)
    (second,) = course.due(1.0)
    assert course.due(50.0) == []
    assert course.next_due() == math.inf, "both wait"
    course.ended(second, 7.25)
    assert scheduled(course.due(7.5)) == [(2, 7.25, "measured")]


def test_a_user_whose_request_failed_waits_a_while() -> None:
    course = make_course(ClosedStarts(1, 0.0), Window(0.0, 10.0))
    (job,) = course.due(0.0)
    course.ended(job, 1.0, failed=True)
    assert course.due(1.0) == []
    assert course.next_due() == 1.0 + PAUSE_S


def test_a_trace_is_over_with_its_last_answer() -> None:
    course = make_course(OpenStarts(iter([0.0, 0.0])), Window(0.0, math.inf), most=2)
    one, other = course.due(0.0)
    assert course.next_due() == math.inf
    course.ended(one, 1.0)
    assert not course.is_over(1.0)
    course.ended(other, 2.0)
    assert course.is_over(2.0)
    assert course.window.closed_s is None


def test_requests_are_prepared_ahead_and_in_order() -> None:
    prepared: list[int] = []

    def prepare(work: Work) -> int:
        prepared.append(work.output)
        return work.output

    course = Course(OpenStarts(iter([0.0] * 5)), Window(0.0, 1.0), lambda n: Work("p", n), prepare, ahead=3, most=5)
    assert prepared == [0, 1, 2]
    assert [job.payload for job in course.due(0.0)] == [0, 1, 2, 3, 4], "one that was not ready is prepared"
    assert not course.fill()
