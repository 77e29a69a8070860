"""A real engine under load: requests join and leave, and write what they write alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

import pytest

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model
from llmc.runtimes.bench.load.course import ClosedStarts, Course, OpenStarts, Window
from llmc.runtimes.bench.load.engine_target import EngineTarget
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.workload import Work, random_work

from ....compiler.tiny_text_model import text_model
from ....shared import Shared

OPTIONS = LoadOptions(input_len="4-9", output_len="3")
WORK = random_work(OPTIONS)


@pytest.fixture(scope="module")
def engine(shared: Shared) -> Path:
    options = CompileOptions(ExportOptions(verify="off"), OptimizeOptions())
    return shared.make("tiny-harness", lambda path: compile_model(str(text_model(shared)), path, options))


@pytest.fixture
def target(engine: Path) -> Iterator[EngineTarget]:
    target = EngineTarget(engine, "tiny", threads=1, rows=3)
    yield target
    target.close()


def longest() -> list[Work]:
    return [max((WORK(0, number) for number in range(50)), key=lambda work: sum(it.length for it in work.pieces))]


def test_users_are_served(target: EngineTarget) -> None:
    target.check()
    assert target.open(OPTIONS, WORK, longest()) == ()
    assert (target.joins, target.rows) == (True, 3)
    record = target.subject()
    assert record.load_s is not None
    assert record.artifact is not None
    assert record.info["threads"] == 1
    course = Course(ClosedStarts(5, 0.0), Window(0.0, 600.0, 40), lambda number: WORK(0, number), target.prepare)
    traffic = target.run(course, lambda now: None)
    counted = [it for it in traffic.exchanges if it.job.phase == "measured"]
    assert len(counted) == 40
    assert {(it.outcome, it.output_tokens, it.finish) for it in counted} == {("ok", 3, "length")}
    assert {it.prompt_tokens for it in counted} <= {4, 5, 6, 7, 8, 9}
    assert all(sorted(it.chunk_s) == it.chunk_s and it.chunk_s[0] > it.job.scheduled_s for it in counted)
    again = Course(
        OpenStarts(iter([0.0])), Window(0.0, math.inf), lambda number: WORK(1, number), target.prepare, most=1
    )
    assert target.run(again, lambda now: None).exchanges[0].outcome == "ok"


def test_texts_and_end_tokens(target: EngineTarget) -> None:
    work = Work("a text that is long enough", 2)
    target.open(LoadOptions(ignore_eos=False), lambda point, number: work, [work])
    assert target.prepare(work) is target.prepare(Work("a text that is long enough", 5)), "it is encoded once"
    assert len(target.prepare(work)) > 1


def test_a_request_that_does_not_fit_is_refused_first(target: EngineTarget) -> None:
    work = Work(WORK(0, 0).prompt, 1_000_000)
    with pytest.raises(UsageError, match="exceed the engine's context"):
        target.open(OPTIONS, lambda point, number: work, [work])


def test_what_is_no_engine_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError):
        EngineTarget(tmp_path, "nothing").check()
