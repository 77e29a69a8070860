"""Does the engine say what the model says?

In: a session and golden data. Out: measured errors, and whether they are within tolerances.

The engine is led along the reference's own continuation (one batch of prompts of unequal length, then token by
token), so that an early difference does not make all later positions incomparable. The long text is read in chunks,
as a row of its own: at its places windows, scaled rotations and seams between chunks have begun.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.compiler.artifact.golden import Golden, Passage
from llmc.compiler.artifact.loss import ALONG_TEXT, KL, LOGIT_ERROR, TOP1, WINDOWS
from llmc.compiler.artifact.reports import Check
from llmc.compiler.base.errors import VerificationError
from llmc.compiler.driver.golden_recording import log_sum_exp
from llmc.compiler.driver.window_edges import wrong_windows
from llmc.compiler.quantization.plan import largest_kl
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import FloatArray, Session, require_room

Comparison = tuple[float, float, bool]
"""Of one position: largest logit error, KL divergence, whether the first choice is the same."""
EXACT_LOGIT_ERROR = 1e-3
"""Largest error of a float32 engine's logits."""
NEARLY_NOTHING = 1e-12
"""Probability below which rounding decides."""
HIDDEN = 1e4
"""Logits so far below the largest are alike: a token that a model hides has the lowest number of whichever type."""


@dataclass(frozen=True)
class Measured:
    """Errors of an engine against the reference.

    Attributes:
        logit_error: Largest absolute difference over the reference's top logits.
        kl: Mean over positions of KL(reference || engine), nats.
        top1: Share of positions where both predict the same token.
        passage: The same along the long text; None where the golden data or the engine's context hold none.
        windows: How many windows of attention are not as long as the model's; None where that cannot be seen.
    """

    logit_error: float
    kl: float
    top1: float
    passage: Measured | None = None
    windows: int | None = None

    @classmethod
    def of(
        cls, compared: Sequence[Comparison], passage: Measured | None = None, windows: int | None = None
    ) -> Measured:
        """Of single positions."""
        errors, divergences, agreements = zip(*compared, strict=True)
        return cls(float(max(errors)), float(np.mean(divergences)), float(np.mean(agreements)), passage, windows)

    def to_mapping(self) -> dict[str, float]:
        """By metric name, for the manifest."""
        own = {LOGIT_ERROR: self.logit_error, KL: self.kl, TOP1: self.top1}
        further = {} if self.passage is None else self.passage.to_mapping()
        own |= {} if self.windows is None else {WINDOWS: float(self.windows)}
        return {**own, **{name + ALONG_TEXT: value for name, value in further.items()}}


@dataclass(frozen=True)
class _Said:
    """What the reference said at one place: its first choice, its largest logits, and the log-sum-exp of all."""

    first: int
    ids: npt.NDArray[np.integer[Any]]
    logits: npt.NDArray[np.floating[Any]]
    log_sum_exp: float
    vocab_size: int


def measure(session: Session, golden: Golden, windows: Sequence[int | None] = ()) -> Measured:
    """Run the golden prompts and continuations, and the long text, through ``session``.

    Args:
        session: The engine's.
        golden: What the reference said.
        windows: Of each layer's attention; none: nobody looks where they end.

    Raises:
        VerificationError: the engine's vocabulary is not the reference's.
        EngineError: the engine failed.
    """
    if session.info.vocab_size != golden.vocab_size:
        raise VerificationError(
            f"the engine has a vocabulary of {session.info.vocab_size}, the golden data of {golden.vocab_size}"
        )
    # Of a context that is shorter than the model's, what it holds.
    context, compared = session.info.max_context, list[Comparison]()
    rows = [row for row, length in enumerate(golden.lengths.tolist()) if length < context]
    if not rows:
        require_room(session.info, 1, int(golden.lengths.min()) + 1)
    Batch.of(session, [_led(golden, row, compared, context) for row in rows]).run()
    along = [] if golden.passage is None else _read(session, golden.passage, golden.vocab_size)
    passage, wrong = golden.passage, None
    if passage is not None:
        wrong = wrong_windows(session, windows, passage.tokens, passage.chunk)
    return Measured.of(compared, Measured.of(along) if along else None, wrong)


def _led(golden: Golden, row: int, compared: list[Comparison], context: int) -> Request:
    """A request that is led along the reference's continuation; adds the errors of each of its steps."""
    length = int(golden.lengths[row])
    tokens = golden.tokens[row, : context - length].tolist()

    def watch(position: int, logits: FloatArray) -> None:
        step = position + len(logits) - length
        if step >= 0:
            ids, kept, total = golden.top_ids[row, step], golden.top_logits[row, step], golden.log_sum_exp[row, step]
            said = _Said(tokens[step], ids, kept, float(total), golden.vocab_size)
            compared.append(_compare(logits[-1], said, f"step {step} of golden prompt {row + 1}"))

    return Request(golden.prompts[row, :length], len(tokens), id=row, forced=tokens, watch=watch)


def _read(session: Session, passage: Passage, vocab_size: int) -> list[Comparison]:
    """The errors at the places of a text: in chunks and token by token, as far as the engine's context goes."""
    length = min(len(passage.tokens), session.info.max_context)
    prompt = min(passage.prompt, length - 1)
    index_of = {place: index for index, place in enumerate(passage.places.tolist())}
    compared: list[Comparison] = []

    def watch(position: int, logits: FloatArray) -> None:
        for place, values in enumerate(logits, position + 1):
            if (index := index_of.get(place)) is not None:
                ids, kept, total = (
                    part[index] for part in (passage.top_ids, passage.top_logits, passage.log_sum_exp)
                )
                said = _Said(int(ids[0]), ids, kept, float(total), vocab_size)
                compared.append(_compare(values, said, f"token {place} of the golden data's long text"))

    following = passage.tokens[prompt:length].tolist()
    request = Request(passage.tokens[:prompt], len(following), forced=following, watch=watch)
    Batch.of(session, [request], prefill_chunk=passage.chunk).run()
    return compared


def _compare(values: FloatArray, said: _Said, where: str) -> Comparison:
    """The errors of one position.

    Raises:
        VerificationError: the engine's logits are not finite there.
    """
    if not np.isfinite(values.max()):
        kind = "NaN" if np.isnan(values).any() else "infinite"
        raise VerificationError(
            f"the engine's logits at {where} are not finite ({kind}): an activation or a weight is beyond what its "
            "type holds; compile at a higher precision"
        )
    ids, floor = said.ids, float(said.logits.max()) - HIDDEN
    reference, engine = (np.maximum(part.astype(np.float64), floor) for part in (said.logits, values[ids]))
    log_p = reference - said.log_sum_exp
    log_q = engine - log_sum_exp(values)
    p = np.exp(log_p)
    divergence = float((p * (log_p - log_q)).sum())
    # What lies outside the kept logits is compared as one lump. An engine that leaves it nothing is charged as if it
    # left it a little: without the lump its kept logits alone would look better than the reference's.
    rest_p, rest_q = max(0.0, 1 - p.sum()), max(0.0, 1 - np.exp(log_q).sum())
    if len(ids) < said.vocab_size and rest_p > NEARLY_NOTHING:
        divergence += rest_p * float(np.log(rest_p / max(rest_q, NEARLY_NOTHING)))
    same = bool(int(values.argmax()) == said.first)
    # Only rounding makes a divergence negative.
    return float(np.abs(engine - reference).max()), max(0.0, divergence), same


def tolerances(precision: str, measured: Measured) -> dict[str, float]:
    """What ``verify`` will accept: fixed for float32; else a margin over what was measured, up to a fixed limit."""
    further = {} if measured.passage is None else tolerances(precision, measured.passage)
    along = {name + ALONG_TEXT: value for name, value in further.items()}
    along |= {} if measured.windows is None else {WINDOWS: 0.0}
    if precision == "fp32":
        return {LOGIT_ERROR: EXACT_LOGIT_ERROR, TOP1: 1.0, **along}
    margin = 1.25
    return {
        LOGIT_ERROR: measured.logit_error * margin + EXACT_LOGIT_ERROR,
        KL: min(measured.kl * margin + 1e-4, largest_kl(precision)),
        TOP1: max(0.0, measured.top1 - 0.05),
        **along,
    }


def limits(precision: str) -> dict[str, float]:
    """What ``verify`` accepts of a graph that did not run where the artifact was made."""
    names = {LOGIT_ERROR: EXACT_LOGIT_ERROR, TOP1: 1.0} if precision == "fp32" else {KL: largest_kl(precision)}
    return {WINDOWS: 0.0, **{name + part: limit for part in ("", ALONG_TEXT) for name, limit in names.items()}}


def checks(measured: Measured, accepted: Mapping[str, float]) -> tuple[Check, ...]:
    """Measured values against tolerances; what has none is only reported."""
    return tuple(
        Check(name, value, accepted.get(name), at_most=not name.startswith(TOP1))
        for name, value in measured.to_mapping().items()
    )
