"""Errors of an engine against golden data: hand calculations, rows and steps, and what is accepted."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.base.errors import EngineError, VerificationError
from llmc.compiler.driver.golden_passage import Reading
from llmc.compiler.driver.golden_recording import STEPS, record_golden
from llmc.compiler.driver.verification import (
    ALONG_TEXT,
    KL,
    LOGIT_ERROR,
    TOP1,
    WINDOWS,
    Measured,
    checks,
    limits,
    measure,
    tolerances,
)

from ...runtimes.conftest import INFO

VOCABULARY = 300
PROMPTS = [[5, 6, 7], [250], [1, 2, 3, 4, 5]]
Speaker = Callable[[tuple[int, ...]], Any]


class Engine:
    """A session whose logits after a text are those of ``speak``; behind a row's end there is nothing but NaN."""

    rows = chooser = None

    def __init__(
        self,
        speak: Speaker,
        vocabulary: int = VOCABULARY,
        *,
        kind: Literal["last", "all"] = "last",
        max_batch: int | None = None,
    ) -> None:
        self.info = replace(INFO, vocab_size=vocabulary, max_batch=max_batch, logits=kind)
        self.speak, self.kind = speak, kind
        self.texts: list[tuple[int, ...]] = []
        self.calls = 0

    def reset(self, batch: int, capacity: int) -> None:
        assert batch <= (self.info.max_batch or batch)
        self.texts, self.capacity = [()] * batch, capacity

    @property
    def lengths(self) -> Any:
        return np.array([len(text) for text in self.texts])

    def forward(self, input_ids: Any, lengths: Any = None) -> Any:
        assert input_ids.flags.c_contiguous
        assert input_ids.shape[0] == len(self.texts)
        self.calls += 1
        chunk = input_ids.shape[1]
        values = np.full((len(self.texts), chunk, self.info.vocab_size), np.nan, np.float32)
        for row, held in enumerate(self.texts):
            count = chunk if lengths is None else int(lengths[row])
            self.texts[row] = (*held, *input_ids[row, :count].tolist())
            assert len(self.texts[row]) <= self.capacity
            for end in range(count):
                values[row, end] = self.speak(self.texts[row][: len(held) + end + 1])
            values[row, 0] = values[row, count - 1] if self.kind == "last" else values[row, 0]
        return SimpleNamespace(host=lambda: values[:, :1] if self.kind == "last" else values)


def by_chance(text: tuple[int, ...]) -> Any:
    """Logits that depend on every token of the text."""
    return 5 * np.random.default_rng(text).standard_normal(VOCABULARY).astype(np.float32)


@pytest.fixture(scope="module")
def golden() -> Golden:
    reference: Any = Engine(by_chance)
    return record_golden(reference, PROMPTS)


def measured(engine: Engine, golden: Golden) -> Measured:
    session: Any = engine
    return measure(session, golden)


# --- by hand --------------------------------------------------------------------------------------------------------


def said(probabilities: Sequence[Sequence[float]], kept: int, shift: float = 0.0) -> Golden:
    """Golden data of one prompt of token 0: a distribution per step, of which the first tokens are kept."""
    logits = (np.log(np.asarray(probabilities)) + shift).astype(np.float32)[None]
    steps = logits.shape[1]
    ids = np.broadcast_to(np.arange(kept), (1, steps, kept))
    sums = np.full((1, steps), shift, np.float32)
    tokens = logits.argmax(-1)
    return Golden(
        np.zeros((1, 1), np.int64), np.ones(1, np.int64), tokens, ids, logits[..., :kept], sums, logits.shape[2]
    )


def says(probabilities: Sequence[Sequence[float]], shift: float = 0.0) -> Engine:
    """An engine that gives a distribution per step, whatever it is led along."""
    with np.errstate(divide="ignore"):
        logits = np.maximum(np.log(np.asarray(probabilities)), -1e4) + shift
    return Engine(lambda text: logits[len(text) - 1], logits.shape[1])


@pytest.mark.parametrize(
    ("reference", "engine", "divergence"),
    [
        ([0.9, 0.1], [0.5, 0.5], 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)),  # 0.368, reversed 0.511
        ([0.5, 0.5], [0.9, 0.1], 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)),  # 0.511
        ([0.7, 0.3], [0.7, 0.3], 0.0),
    ],
)
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_the_divergence_is_from_the_reference_to_the_engine(
    reference: list[float], engine: list[float], divergence: float, shift: float
) -> None:
    """A constant added to all logits changes no probability."""
    result = measured(says([engine], shift), said([reference], kept=2, shift=-shift))
    assert result.kl == pytest.approx(divergence, abs=1e-6)


@pytest.mark.parametrize(("reference", "engine"), [([0.9, 0.1], [0.5, 0.5]), ([0.5, 0.5], [0.9, 0.1])])
def test_the_logit_error_is_the_largest_of_a_position_up_or_down(reference: list[float], engine: list[float]) -> None:
    result = measured(says([engine]), said([reference], kept=2))
    assert result.logit_error == pytest.approx(math.log(5), abs=1e-6)


def test_what_is_not_kept_is_one_lump_in_the_divergence() -> None:
    """Not in the logit error: the reference's logits there are not known."""
    result = measured(says([[0.4, 0.2, 0.1, 0.3]]), said([[0.5, 0.2, 0.2, 0.1]], kept=2))
    assert result.kl == pytest.approx(0.5 * math.log(0.5 / 0.4) + 0.3 * math.log(0.3 / 0.4), abs=1e-6)
    assert result.logit_error == pytest.approx(math.log(0.5 / 0.4), abs=1e-6)


def test_an_engine_that_rules_out_what_is_not_kept_diverges() -> None:
    result = measured(says([[0.7, 0.3, 0.0, 0.0]]), said([[0.5, 0.2, 0.2, 0.1]], kept=2))
    assert 5 < result.kl < 10


def test_rounding_of_the_sum_is_no_rest_where_all_is_kept() -> None:
    golden = said([[0.7, 0.3]], kept=2)
    rounded = replace(golden, log_sum_exp=golden.log_sum_exp + np.float32(1e-5))
    assert measured(says([[0.7, 0.3]]), rounded).kl == pytest.approx(0, abs=2e-6)


def test_the_first_choice_is_looked_for_in_the_whole_vocabulary() -> None:
    reference = said([[0.4, 0.3, 0.2, 0.1]], kept=2)
    assert measured(says([[0.3, 0.2, 0.1, 0.4]]), reference).top1 == 0.0
    assert measured(says([[0.4, 0.2, 0.1, 0.3]]), reference).top1 == 1.0


def test_positions_count_by_their_largest_error_mean_divergence_and_share_of_agreement() -> None:
    reference = said([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1]], kept=2)
    result = measured(says([[0.9, 0.1], [0.5, 0.5], [0.8, 0.2]]), reference)
    second = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    third = 0.9 * math.log(0.9 / 0.8) + 0.1 * math.log(0.1 / 0.2)
    assert result.logit_error == pytest.approx(math.log(5), abs=1e-6)
    assert result.kl == pytest.approx((second + third) / 3, abs=1e-6)
    assert result.top1 == 1.0
    assert measured(says([[0.9, 0.1], [0.4, 0.6], [0.8, 0.2]]), reference).top1 == pytest.approx(2 / 3)


def test_metrics_by_name() -> None:
    assert Measured(0.5, 0.25, 0.75).to_mapping() == {LOGIT_ERROR: 0.5, KL: 0.25, TOP1: 0.75}


# --- rows and steps -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["last", "all"])
@pytest.mark.parametrize("max_batch", [None, 1, 2, 3, 4])
def test_the_reference_itself_has_no_error(
    golden: Golden, kind: Literal["last", "all"], max_batch: int | None
) -> None:
    """Prompts of unequal lengths, as many at once as the engine holds, each led along its own continuation."""
    engine = Engine(by_chance, kind=kind, max_batch=max_batch)
    result = measured(engine, golden)
    assert (result.logit_error, result.top1) == (0.0, 1.0)
    assert result.kl == pytest.approx(0, abs=1e-6)
    assert engine.calls == STEPS * math.ceil(len(PROMPTS) / (max_batch or len(PROMPTS)))


def test_an_early_difference_does_not_make_later_positions_incomparable(golden: Golden) -> None:
    prompt = tuple(PROMPTS[1])

    def otherwise(text: tuple[int, ...]) -> Any:
        return -by_chance(text) if text == prompt else by_chance(text)

    assert measured(Engine(otherwise), golden).top1 == pytest.approx(1 - 1 / (len(PROMPTS) * STEPS))


@pytest.mark.parametrize(("row", "step"), [(0, 0), (1, STEPS - 1), (2, 7)])
@pytest.mark.parametrize("max_batch", [None, 2])
def test_every_row_and_step_counts(golden: Golden, row: int, step: int, max_batch: int | None) -> None:
    there = (*PROMPTS[row], *golden.tokens[row, :step].tolist())

    def louder(text: tuple[int, ...]) -> Any:
        return by_chance(text) + (2.0 if text == there else 0.0)

    assert measured(Engine(louder, max_batch=max_batch), golden).logit_error == pytest.approx(2.0, abs=1e-5)


@pytest.mark.parametrize("vocabulary", [VOCABULARY - 1, VOCABULARY + 1])
def test_another_vocabulary_is_refused(golden: Golden, vocabulary: int) -> None:
    message = f"the engine has a vocabulary of {vocabulary}, the golden data of {VOCABULARY}"
    with pytest.raises(VerificationError, match=message):
        measured(Engine(by_chance, vocabulary), golden)


# --- the long text --------------------------------------------------------------------------------------------------

TEXT = [(11 * place) % 293 for place in range(40)]
READING = Reading(length=40, prompt=31, chunk=9)


@pytest.fixture(scope="module")
def longer() -> Golden:
    reference: Any = Engine(by_chance)
    reference.logits_at = lambda tokens, places: np.stack([by_chance(tuple(tokens[:place])) for place in places])
    return record_golden(reference, PROMPTS, TEXT, READING)


@pytest.mark.parametrize("kind", ["last", "all"])
def test_the_reference_itself_has_no_error_along_a_text(longer: Golden, kind: Literal["last", "all"]) -> None:
    engine = Engine(by_chance, kind=kind)
    result = measured(engine, longer)
    assert result.passage is not None
    assert (result.passage.logit_error, result.passage.top1, result.passage.passage) == (0.0, 1.0, None)
    assert result.passage.kl == pytest.approx(0, abs=1e-6)
    assert engine.calls == STEPS + 4 + (40 - 31 - 1), "four chunks, and single tokens but for the last"
    assert engine.texts == [tuple(TEXT[:-1])]


@pytest.mark.parametrize("kind", ["last", "all"])
@pytest.mark.parametrize("place", [9, 18, 27, *range(31, 40)])
def test_every_place_of_a_text_counts(longer: Golden, place: int, kind: Literal["last", "all"]) -> None:
    """Its errors are not those of the prompts."""

    def louder(text: tuple[int, ...]) -> Any:
        return by_chance(text) + (2.0 if text == tuple(TEXT[:place]) else 0.0)

    result = measured(Engine(louder, kind=kind), longer)
    assert result.passage is not None
    assert result.passage.logit_error == pytest.approx(2.0, abs=1e-5)
    assert (result.logit_error, result.top1) == (0.0, 1.0)


@pytest.mark.parametrize("place", [1, 8, 10, 30])
def test_other_places_are_not_known(longer: Golden, place: int) -> None:
    def louder(text: tuple[int, ...]) -> Any:
        return by_chance(text) + (2.0 if text == tuple(TEXT[:place]) else 0.0)

    result = measured(Engine(louder, kind="all"), longer)
    assert result.passage is not None
    assert result.passage.logit_error == 0.0


def test_an_engine_whose_chunks_are_shorter_is_compared_where_it_has_logits(longer: Golden) -> None:
    """At its own ends of chunks where they are kept, and at single tokens."""
    engine = Engine(by_chance)
    engine.info = replace(engine.info, profiles=((1, 6),))
    result = measured(engine, longer)
    assert result.passage is not None
    assert result.passage.logit_error == 0.0


@pytest.mark.parametrize(("context", "ends"), [(35, 4 + 3), (31, 4), (26, 3), (21, 3)])
def test_a_text_is_read_as_far_as_the_context_goes(longer: Golden, context: int, ends: int) -> None:
    engine = Engine(by_chance)
    engine.info = replace(engine.info, max_context=context)
    result = measured(engine, longer)
    assert result.passage is not None
    assert engine.texts == [tuple(TEXT[: context - 1])]
    assert engine.calls == STEPS + ends


def test_a_context_that_reaches_no_place_has_no_errors_along_a_text(longer: Golden) -> None:
    assert longer.passage is not None
    far = replace(longer, passage=replace(longer.passage, places=longer.passage.places + 100))
    assert measured(Engine(by_chance), far).passage is None


def test_metrics_along_a_text_have_names_of_their_own() -> None:
    assert Measured(0.5, 0.25, 0.75, Measured(0.05, 0.025, 0.5)).to_mapping() == {
        LOGIT_ERROR: 0.5,
        KL: 0.25,
        TOP1: 0.75,
        f"{LOGIT_ERROR}, long text": 0.05,
        f"{KL}, long text": 0.025,
        f"{TOP1}, long text": 0.5,
    }


# --- what is accepted -----------------------------------------------------------------------------------------------


def test_float32_has_fixed_tolerances() -> None:
    assert tolerances("fp32", Measured(7.0, 7.0, 0.5)) == {LOGIT_ERROR: 1e-3, TOP1: 1.0}


def test_other_precisions_have_a_margin_over_what_was_measured() -> None:
    accepted = tolerances("fp16", Measured(0.02, 1e-3, 0.97))
    assert accepted == pytest.approx({LOGIT_ERROR: 0.026, KL: 0.00135, TOP1: 0.92})
    assert tolerances("int4", Measured(2.0, 0.4, 0.02)) == pytest.approx({LOGIT_ERROR: 2.501, KL: 0.5001, TOP1: 0.0})


@pytest.mark.parametrize(
    ("precision", "limit"), [("fp16", 0.1), ("bf16", 0.1), ("fp8", 0.1), ("int8", 0.1), ("int4", 2.0)]
)
def test_the_divergence_has_a_limit(precision: str, limit: float) -> None:
    assert tolerances(precision, Measured(0.0, 3.0, 1.0))[KL] == limit
    assert tolerances(precision, Measured(0.0, limit / 2, 1.0))[KL] == pytest.approx(limit * 0.625 + 1e-4)


def test_a_text_has_tolerances_of_its_own() -> None:
    along = Measured(0.1, 0.02, 0.6)
    exact = tolerances("fp32", Measured(7.0, 7.0, 0.5, along))
    assert exact == dict.fromkeys([LOGIT_ERROR, LOGIT_ERROR + ALONG_TEXT], 1e-3) | dict.fromkeys(
        [TOP1, TOP1 + ALONG_TEXT], 1.0
    )
    accepted = tolerances("int8", Measured(0.02, 1e-3, 0.97, along))
    assert accepted[LOGIT_ERROR + ALONG_TEXT] == pytest.approx(0.126)
    assert accepted[KL + ALONG_TEXT] == pytest.approx(0.0251)
    assert accepted[TOP1 + ALONG_TEXT] == pytest.approx(0.55)
    assert accepted[TOP1] == pytest.approx(0.92)


def test_an_agreement_along_a_text_that_is_too_small_fails() -> None:
    result = checks(Measured(0, 0, 1, Measured(0.0, 0.0, 0.5)), {TOP1 + ALONG_TEXT: 0.6})
    assert [check.name for check in result if not check.passed] == [TOP1 + ALONG_TEXT]


ACCEPTED = {LOGIT_ERROR: 0.5, KL: 0.25, TOP1: 0.75}


@pytest.mark.parametrize(
    ("values", "failed"),
    [
        (Measured(0.4, 0.2, 0.8), []),
        (Measured(0.6, 0.2, 0.8), [LOGIT_ERROR]),
        (Measured(0.4, 0.3, 0.8), [KL]),
        (Measured(0.4, 0.2, 0.7), [TOP1]),
    ],
)
def test_each_error_alone_fails(values: Measured, failed: list[str]) -> None:
    result = checks(values, ACCEPTED)
    assert [check.name for check in result if not check.passed] == failed


@pytest.mark.parametrize("accepted", [{}, {LOGIT_ERROR: 0.5, TOP1: 0.0}])
def test_what_has_no_tolerance_is_only_reported(accepted: Mapping[str, float]) -> None:
    by_name = {check.name: check for check in checks(Measured(0.4, 9.0, 0.0), accepted)}
    assert (by_name[KL].measured, by_name[KL].tolerance, by_name[KL].passed) == (9.0, None, True)


def test_limits_of_a_graph_that_nobody_measured() -> None:
    """Those of its precision, along prompts and text."""
    assert limits("fp32") == {
        LOGIT_ERROR: 1e-3,
        TOP1: 1.0,
        f"{LOGIT_ERROR}, long text": 1e-3,
        f"{TOP1}, long text": 1.0,
        WINDOWS: 0.0,
    }
    assert limits("int4") == {KL: 2.0, f"{KL}, long text": 2.0, WINDOWS: 0.0}
    assert limits("fp16") == {KL: 0.1, f"{KL}, long text": 0.1, WINDOWS: 0.0}


@pytest.mark.parametrize(
    ("context", "steps"), [(5 + STEPS, 3 * STEPS), (4 + STEPS, 3 * STEPS - 1), (5, 2 + 4), (2, 1)]
)
def test_an_engine_is_compared_as_far_as_its_context_goes(golden: Golden, context: int, steps: int) -> None:
    """Prompts of 3, 1 and 5 tokens: of each what fits, and a token behind it."""
    engine = Engine(by_chance)
    engine.info = replace(engine.info, max_context=context)
    assert measured(engine, golden).top1 == 1.0
    assert sum(len(text) for text in engine.texts) - sum(
        n for n in golden.lengths.tolist() if n < context
    ) == steps - len(engine.texts)


def test_an_engine_whose_context_is_too_short_says_what_to_do(golden: Golden) -> None:
    engine = Engine(by_chance)
    engine.info = replace(engine.info, max_context=1)
    with pytest.raises(EngineError, match="2 tokens are more than this engine's context of 1; "):
        measured(engine, golden)
