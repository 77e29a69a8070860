"""Does the engine say what the model says?

In: a session and golden data. Out: measured errors, and whether they are within tolerances.

The engine is led along the reference's own continuation (one batch of prompts of unequal length, then token by
token), so that an early difference does not make all later positions incomparable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from llmc.compiler.artifact.golden import Golden
from llmc.compiler.artifact.reports import Check, VerifyReport
from llmc.compiler.base.errors import VerificationError
from llmc.compiler.driver.golden_recording import log_sum_exp
from llmc.compiler.quantization.plan import largest_kl
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.session.engine import FloatArray, Session, require_room

LOGIT_ERROR, KL, TOP1 = "largest logit error", "mean KL divergence", "top-1 agreement"
EXACT_LOGIT_ERROR = 1e-3
"""Largest error of a float32 engine's logits."""
NEARLY_NOTHING = 1e-12
"""Probability below which rounding decides."""


@dataclass(frozen=True)
class Measured:
    """Errors of an engine against the reference.

    Attributes:
        logit_error: Largest absolute difference over the reference's top logits.
        kl: Mean over positions of KL(reference || engine), nats.
        top1: Share of positions where both predict the same token.
    """

    logit_error: float
    kl: float
    top1: float

    def to_mapping(self) -> dict[str, float]:
        """By metric name, for the manifest."""
        return {LOGIT_ERROR: self.logit_error, KL: self.kl, TOP1: self.top1}


def measure(session: Session, golden: Golden) -> Measured:
    """Run the golden prompts and continuations through ``session``.

    Raises:
        VerificationError: the engine's vocabulary is not the reference's.
        EngineError: the engine failed.
    """
    if session.info.vocab_size != golden.vocab_size:
        raise VerificationError(
            f"the engine has a vocabulary of {session.info.vocab_size}, the golden data of {golden.vocab_size}"
        )
    require_room(session.info, 1, int(golden.lengths.max()) + golden.tokens.shape[1])
    compared: list[tuple[float, float, bool]] = []
    Batch.of(session, [_led(golden, row, compared) for row in range(len(golden.tokens))]).run()
    errors, divergences, agreements = zip(*compared, strict=True)
    return Measured(float(max(errors)), float(np.mean(divergences)), float(np.mean(agreements)))


def _led(golden: Golden, row: int, compared: list[tuple[float, float, bool]]) -> Request:
    """A request that is led along the reference's continuation; adds the errors of each of its steps."""
    length, tokens = int(golden.lengths[row]), golden.tokens[row].tolist()

    def watch(position: int, logits: FloatArray) -> None:
        step = position + len(logits) - length
        if step >= 0:
            compared.append(_compare(logits[-1], golden, row, step))

    return Request(golden.prompts[row, :length], len(tokens), id=row, forced=tokens, watch=watch)


def _compare(values: FloatArray, golden: Golden, row: int, step: int) -> tuple[float, float, bool]:
    ids = golden.top_ids[row, step]
    reference = golden.top_logits[row, step].astype(np.float64)
    engine = values[ids].astype(np.float64)
    if not np.isfinite(values).all():
        return float("inf"), float("inf"), False
    log_p = reference - float(golden.log_sum_exp[row, step])
    log_q = engine - log_sum_exp(values)
    p = np.exp(log_p)
    divergence = float((p * (log_p - log_q)).sum())
    # What lies outside the kept logits is compared as one lump. An engine that leaves it nothing is charged as if it
    # left it a little: without the lump its kept logits alone would look better than the reference's.
    rest_p, rest_q = max(0.0, 1 - p.sum()), max(0.0, 1 - np.exp(log_q).sum())
    if len(ids) < golden.vocab_size and rest_p > NEARLY_NOTHING:
        divergence += rest_p * float(np.log(rest_p / max(rest_q, NEARLY_NOTHING)))
    same = bool(int(values.argmax()) == int(golden.tokens[row, step]))
    # Only rounding makes a divergence negative.
    return float(np.abs(engine - reference).max()), max(0.0, divergence), same


def tolerances(precision: str, measured: Measured) -> dict[str, float]:
    """What ``verify`` will accept: fixed for float32; else a margin over what was measured, up to a fixed limit."""
    if precision == "fp32":
        return {LOGIT_ERROR: EXACT_LOGIT_ERROR, TOP1: 1.0}
    margin = 1.25
    return {
        LOGIT_ERROR: measured.logit_error * margin + EXACT_LOGIT_ERROR,
        KL: min(measured.kl * margin + 1e-4, largest_kl(precision)),
        TOP1: max(0.0, measured.top1 - 0.05),
    }


def report(measured: Measured, accepted: Mapping[str, float], where: str = "") -> VerifyReport:
    """Measured values against tolerances; ``where`` says what ran, if it was not the artifact itself."""
    checks = (
        Check(name, value if np.isfinite(value) else 1e30, accepted.get(name), at_most=name != TOP1)
        for name, value in measured.to_mapping().items()
    )
    return VerifyReport(tuple(checks), where)
