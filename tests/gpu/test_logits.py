"""SmolLM2-135M on the GPU against transformers in float32, and what 8 and 4 bits cost beside float16."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from ..generation import generate
from .conftest import STEPS, Engines, Opened
from .reference import Led, Row, lead, lead_edited, mean_kl

ERROR = {"fp16": 0.2, "bf16": 1.2}
"""Largest difference of a logit from float32; an H100 had 0.125 and 0.78."""
MEAN_KL = {"fp16": 4e-5, "bf16": 2e-3}
"""Nats; an H100 had 1.5e-5 and 9e-4."""
KL_TO_FP16 = {"int4": 0.3, "int8": 3e-3, "fp8": 6e-3, "kv-fp8": 0.01, "kv-int8": 0.03}
"""Mean KL divergence from the float16 engine, nats; an H100 had 0.23, 1.0e-3, 2.4e-3, 4.0e-3 and 0.012."""
LEAST_IN_COMMON = {"fp16": STEPS / 4, "bf16": 1}
"""Mean number of greedy tokens before the text leaves float32's; bfloat16 decides otherwise wherever it is close."""
CASES = {
    "single": {"batch": 1},
    "single-chunks-of-7": {"batch": 1, "chunk": 7},
    "ragged": {"batch": 8},
    "chunks-of-7": {"batch": 8, "chunk": 7, "steps": 16},
    "chunks-of-32": {"batch": 8, "chunk": 32, "steps": 16},
}
Record = Callable[..., str]
FLOATS = [pytest.param(name, id=name) for name in ERROR]


@pytest.fixture(scope="module")
def half(engines: Engines, rows: list[Row]) -> Led:
    """The float16 engine along all rows."""
    return lead(engines.open("fp16").session, rows)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
@pytest.mark.parametrize("opened", FLOATS, indirect=True)
def test_logits_are_those_of_float32(
    opened: Opened, rows: list[Row], case: dict[str, object], record: Record, request: pytest.FixtureRequest
) -> None:
    options = dict(case)
    name, batch = opened.directory.name, int(str(options.pop("batch")))
    led = lead(opened.session, rows[:batch], **options)  # type: ignore[arg-type]
    measured = record(error=led.error, mean_kl=led.mean_kl)
    assert led.error <= ERROR[name], measured
    assert led.mean_kl <= MEAN_KL[name], measured
    # The token that the device finds is one of the largest in the logits that it gives out …
    found = led.actual[np.arange(len(led.chosen)), led.chosen]
    assert np.array_equal(found, led.actual.max(axis=1))
    # … and the reference's, wherever that is decided.
    other = (led.chosen != led.expected.argmax(axis=1)) & ~led.undecided(led.error)
    assert not other.any(), f"{int(other.sum())} tokens differ; {measured}"


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("opened", FLOATS, indirect=True)
def test_greedy_text_leaves_the_reference_only_where_that_is_undecided(
    opened: Opened, rows: list[Row], batch: int, record: Record
) -> None:
    made = generate(opened.session, [row.prompt for row in rows[:batch]], max_tokens=STEPS)
    bound, same = ERROR[opened.directory.name], []
    for row, tokens in zip(rows, made.tokens, strict=False):
        differing = [i for i, pair in enumerate(zip(tokens, row.continuation, strict=True)) if pair[0] != pair[1]]
        same.append(differing[0] if differing else STEPS)
        if differing:
            logits = row.logits[len(row.prompt) + differing[0] - 1]
            margin = logits[row.continuation[differing[0]]] - logits[tokens[differing[0]]]
            assert margin <= 2 * bound, f"token {differing[0]}: margin {margin:.3g}"
    measured = record(tokens_before_they_part=float(np.mean(same)))
    assert len(same) == batch
    assert np.mean(same) >= LEAST_IN_COMMON[opened.directory.name], measured


@pytest.mark.parametrize("opened", [pytest.param(name, id=name) for name in KL_TO_FP16], indirect=True)
def test_what_fewer_bits_cost(opened: Opened, half: Led, rows: list[Row], record: Record) -> None:
    led = lead(opened.session, rows)
    kl = mean_kl(half.actual, led.actual)
    agreement = float((half.chosen == led.chosen).mean())
    measured = record(kl_to_fp16=kl, kl_to_float32=led.mean_kl, top1_agreement=agreement, error=led.error)
    assert 0 < kl <= KL_TO_FP16[opened.directory.name], measured


@pytest.mark.parametrize(
    "opened", [pytest.param(name, id=name) for name in ("fp16", "kv-fp8", "kv-int8")], indirect=True
)
def test_rows_are_released_cut_and_copied(opened: Opened, rows: list[Row], record: Record) -> None:
    """No further from the reference than rows that hold nothing else from the start: a misplaced one is nats away."""
    whole, edited = lead(opened.session, rows), lead_edited(opened.session, rows)
    measured = record(kl=edited.mean_kl, kl_whole=whole.mean_kl, error=edited.error, error_whole=whole.error)
    assert edited.mean_kl <= 4 * whole.mean_kl, measured
    assert edited.error <= 2 * whole.error, measured


@pytest.mark.parametrize("opened", [pytest.param(name, id=name) for name in ("int4", "kv-fp8")], indirect=True)
def test_batch_and_chunks_cost_nothing(opened: Opened, rows: list[Row], record: Record) -> None:
    """The same engine along the same rows, alone and in chunks: it may differ from itself by rounding alone."""
    whole = lead(opened.session, rows, steps=8)
    last = whole.actual[len(rows) :].reshape(8, len(rows), -1)
    for index in (0, 5):
        alone = lead(opened.session, [rows[index]], chunk=7, steps=8).actual[-8:]
        kl = mean_kl(last[:, index], alone)
        measured = record(**{f"kl_row_{index}": kl})
        assert kl <= 5e-3, measured
