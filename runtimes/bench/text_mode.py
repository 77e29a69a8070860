"""The loop that users run, measured: text in, text out.

In: clock readings of each prompt's answer, from a worker (``workers/text_loop.py``). Out: :class:`TextRecord`, which
the report keeps, :class:`TextResult`, its figures, and :class:`TextComparison`, ratios of two subjects. Inside the
clock: the chat template, tokenization, prefill, sampling, detokenization. The end token is not heeded, so that all
engines write as much.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llmc.runtimes.bench.ratio_interval import RatioInterval, ratio_interval
from llmc.runtimes.machine.summary import Percentiles, Summary, paired_ratios

_MS = 1e-6


@dataclass(frozen=True)
class TextRecord:
    """One prompt and its answer.

    Attributes:
        round, prompt: From 0: of the benchmark, and in the file of prompts.
        prompt_tokens, tokens, characters: Of the prompt with its template, and of the answer.
        ticks_ns: Nanoseconds of the worker's clock: when the text was handed over, when it was tokens, and when each
            token's text had been given out.
        first_text: Which of these readings gave the first character; None: none came.
    """

    label: str
    round: int
    prompt: int
    prompt_tokens: int
    tokens: int
    characters: int
    ticks_ns: tuple[int, ...]
    first_text: int | None

    @property
    def encode_ms(self) -> float:
        """From text to tokens."""
        return (self.ticks_ns[1] - self.ticks_ns[0]) * _MS

    @property
    def ttft_ms(self) -> float | None:
        """From text to the first character."""
        return None if self.first_text is None else (self.ticks_ns[self.first_text] - self.ticks_ns[0]) * _MS

    @property
    def itl_ms(self) -> list[float]:
        """Gaps between the tokens' texts."""
        return [(later - sooner) * _MS for sooner, later in zip(self.ticks_ns[2:], self.ticks_ns[3:], strict=False)]


@dataclass(frozen=True)
class TextResult:
    """One subject's figures, all prompts and rounds together.

    Attributes:
        prompts: How many a round has.
        prompt_tokens: Of all prompts of a round.
        encode_ms: Chat template and tokenization.
        ttft_ms: From text to the first character.
        tpot_ms: Of each answer; None where every answer is one token.
        itl_ms: Gaps between the tokens' texts.
        tokens_per_s, characters_per_s: Of all answers of a round over the seconds that they took, prompts included.
    """

    label: str
    prompts: int
    prompt_tokens: int
    encode_ms: Percentiles
    ttft_ms: Percentiles | None
    tpot_ms: Percentiles | None
    itl_ms: Percentiles | None
    tokens_per_s: Summary
    characters_per_s: Summary


@dataclass(frozen=True)
class TextComparison:
    """First subject over another one, round by round; above 1 where the first is faster.

    Attributes:
        numerator, denominator: Labels of the two.
        metric: ``ttft``, the mean of a round's prompts, the other's over the first's; or ``characters`` a second of a
            round, the first's over the other's, which compare where tokens do not.
        rounds, ratio: Ratio of each round; their median, least and most.
        interval: Where the median of such rounds lies; None of a single round.
        standing: As of a :class:`~.results.Comparison`.
    """

    numerator: str
    denominator: str
    metric: str
    rounds: tuple[float, ...]
    ratio: Summary
    interval: RatioInterval | None = None
    standing: str = ""


def text_records(label: str, turn: int, answers: Sequence[Mapping[str, Any]]) -> list[TextRecord]:
    """What a worker answered in one round, prompt by prompt."""
    return [
        TextRecord(
            label=label,
            round=turn,
            prompt=place,
            prompt_tokens=answer["prompt_tokens"],
            tokens=answer["tokens"],
            characters=answer["characters"],
            ticks_ns=tuple(answer["ticks"]),
            first_text=answer["first_text"],
        )
        for place, answer in enumerate(answers)
    ]


def analyze_texts(records: Sequence[TextRecord]) -> tuple[TextResult, ...]:
    """Figures of each subject, in the order in which they were measured."""
    labels = dict.fromkeys(record.label for record in records)
    return tuple(_result(label, [record for record in records if record.label == label]) for label in labels)


def compare_texts(records: Sequence[TextRecord]) -> tuple[TextComparison, ...]:
    """The first subject over each other one; no TTFT where an answer had no character."""
    first, *others = dict.fromkeys(record.label for record in records) or [""]
    found = []
    for other in others:
        for metric, speeds in {"ttft": _first_speeds, "characters": _character_speeds}.items():
            sides = [speeds(_rounds([it for it in records if it.label == label])) for label in (first, other)]
            if all(sides):
                ratios = paired_ratios(*sides)
                summary, interval = Summary.of(ratios), ratio_interval(ratios)
                found.append(TextComparison(first, other, metric, ratios, summary, interval))
    return tuple(found)


def _rounds(records: Sequence[TextRecord]) -> list[list[TextRecord]]:
    return [[record for record in records if record.round == turn] for turn in sorted({it.round for it in records})]


def _first_speeds(rounds: Sequence[Sequence[TextRecord]]) -> list[float]:
    """First characters by milliseconds of waiting, of each round; empty where one never came."""
    waits = [[it.ttft_ms for it in each] for each in rounds]
    known = [[wait for wait in each if wait is not None] for each in waits]
    return [len(each) / sum(each) for each in known] if known == waits else []


def _character_speeds(rounds: Sequence[Sequence[TextRecord]]) -> list[float]:
    return [sum(it.characters for it in each) / _seconds(each) for each in rounds]


def _seconds(records: Sequence[TextRecord]) -> float:
    return sum(it.ticks_ns[-1] - it.ticks_ns[0] for it in records) / 1e9


def _result(label: str, records: Sequence[TextRecord]) -> TextResult:
    rounds = _rounds(records)
    return TextResult(
        label=label,
        prompts=len(rounds[0]),
        prompt_tokens=sum(it.prompt_tokens for it in rounds[0]),
        encode_ms=Percentiles.of([it.encode_ms for it in records]),
        ttft_ms=_percentiles(ttft for it in records if (ttft := it.ttft_ms) is not None),
        tpot_ms=_percentiles(sum(it.itl_ms) / len(it.itl_ms) for it in records if it.itl_ms),
        itl_ms=_percentiles(gap for it in records for gap in it.itl_ms),
        tokens_per_s=Summary.of([sum(it.tokens for it in each) / _seconds(each) for each in rounds]),
        characters_per_s=Summary.of(_character_speeds(rounds)),
    )


def _percentiles(values: Iterable[float]) -> Percentiles | None:
    found = list(values)
    return Percentiles.of(found) if found else None
