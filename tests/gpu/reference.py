"""What transformers says in float32 on the GPU; engines led along it; and how far they are from it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from llmc.runtimes.session.engine import Int64Array, Session

Array = npt.NDArray[Any]
PADDING = 11
"""What stands under a mask of 0: a token, which must not be read."""


@dataclass(frozen=True)
class Row:
    """A prompt, the reference's greedy continuation, and the logits of every position of both.

    Attributes:
        prompt, continuation: Token ids.
        logits: [len(prompt) + len(continuation), vocab_size] float32; row i predicts token i + 1.
    """

    prompt: list[int]
    continuation: list[int]
    logits: Array


@dataclass(frozen=True)
class Led:
    """An engine's logits where the reference's are known.

    Attributes:
        actual, expected: [positions, vocab_size] float32.
        chosen: The engine's own arg-max, [positions] int64.
    """

    actual: Array
    expected: Array
    chosen: Int64Array

    @property
    def error(self) -> float:
        """Largest difference of a logit; NaN counts as infinite."""
        return float(np.nan_to_num(np.abs(self.actual - self.expected), nan=np.inf).max())

    @property
    def mean_kl(self) -> float:
        """Mean KL divergence of the engine from the reference, nats."""
        return mean_kl(self.expected, self.actual)

    def undecided(self, error: float) -> Array:
        """Positions where the reference's two largest logits differ by at most ``2 * error``, as booleans."""
        top = np.partition(self.expected, -2, axis=1)[:, -2:]
        result: Array = top[:, 1] - top[:, 0] <= 2 * error
        return result


def device_name() -> str:
    """torch's name of the device that the reference runs on."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def load_reference(path: Path) -> Any:
    """transformers' model of a directory or a ``.gguf`` file: float32, eager attention, no TF32."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_float32_matmul_precision("highest")
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if path.suffix == ".gguf":
        path, options = path.parent, {**options, "gguf_file": path.name}
    return AutoModelForCausalLM.from_pretrained(str(path), **options).eval().to(device_name())


def reference_rows(model: Any, prompts: Sequence[Sequence[int]], steps: int) -> list[Row]:
    """Greedy continuations, one batch for all; logits from one forward of each unpadded row without a cache."""
    import torch

    ids, mask = pad(prompts, "left")
    where = device_name()
    rows = []
    with torch.inference_mode():
        made = model.generate(
            torch.from_numpy(ids).to(where),
            attention_mask=torch.from_numpy(mask).to(where),
            do_sample=False,
            max_new_tokens=steps,
            min_new_tokens=steps,
            eos_token_id=None,
            pad_token_id=PADDING,
        )[:, ids.shape[1] :]
        for prompt, continuation in zip(prompts, made.cpu().tolist(), strict=True):
            whole = torch.tensor([[*prompt, *continuation]], device=where)
            logits = model(input_ids=whole, use_cache=False).logits[0].float().cpu().numpy()
            rows.append(Row(list(prompt), continuation, logits))
    return rows


def pad(prompts: Sequence[Sequence[int]], side: str) -> tuple[Int64Array, Int64Array]:
    """``input_ids`` and ``attention_mask`` [batch, longest], padded left or right."""
    longest = max(map(len, prompts))
    ids = np.full((len(prompts), longest), PADDING, np.int64)
    mask = np.zeros((len(prompts), longest), np.int64)
    for index, prompt in enumerate(prompts):
        at = slice(longest - len(prompt), longest) if side == "left" else slice(0, len(prompt))
        ids[index, at], mask[index, at] = prompt, 1
    return ids, mask


def lead(session: Session, rows: Sequence[Row], *, chunk: int = 0, steps: int = 64) -> Led:
    """Prompts whole or in chunks, then ``steps`` tokens of each continuation one by one.

    Args:
        session: Gives the logits of each row's last token.
        rows: A batch.
        chunk: Tokens per row and forward of the prompt; 0: all.
        steps: Decode steps, at most the tokens of a continuation.
    """
    ids, mask = pad([row.prompt for row in rows], "right")
    lengths = mask.sum(axis=1)
    session.reset(len(rows), ids.shape[1] + steps)
    actual, expected, chosen = [], [], []

    def compare(logits: Any, at: dict[int, int]) -> None:
        """Keep each row's logits and the reference's at its position."""
        host, tokens = logits.host(), logits.argmax()
        for index, position in at.items():
            actual.append(np.array(host[index, 0]))  # the next forward may overwrite it
            expected.append(rows[index].logits[position])
            chosen.append(int(tokens[index]))

    width = chunk or ids.shape[1]
    for start in range(0, ids.shape[1], width):
        part = np.ascontiguousarray(ids[:, start : start + width])
        counts = np.clip(lengths - start, 0, part.shape[1])
        logits = session.forward(part, counts)
        compare(logits, {int(row): start + int(counts[row]) - 1 for row in np.flatnonzero(counts)})
    for step in range(steps):
        logits = session.forward(np.array([[row.continuation[step]] for row in rows], np.int64))
        compare(logits, {index: len(row.prompt) + step for index, row in enumerate(rows)})
    assert session.lengths.tolist() == [len(row.prompt) + steps for row in rows]
    return Led(np.stack(actual), np.stack(expected), np.array(chosen, np.int64))


def lead_edited(session: Session, rows: Sequence[Row]) -> Led:
    """Texts in three rows of a cache that are released, cut and copied while others go on."""
    texts = [[*row.prompt, *row.continuation] for row in rows]
    held = [(0, 0), (1, 0), (2, 0)]  # in each row of the cache: which text, and how much of it
    assert session.rows is not None
    session.reset(3, 192)
    actual, expected, chosen = [], [], []

    def feed(*counts: int) -> None:
        ids = np.full((3, max(counts)), PADDING, np.int64)
        for index, ((text, length), count) in enumerate(zip(held, counts, strict=True)):
            ids[index, :count] = texts[text][length : length + count]
            held[index] = (text, length + count)
        logits = session.forward(ids, np.array(counts, np.int64))
        host, tokens = logits.host(), logits.argmax()
        for index, ((text, length), count) in enumerate(zip(held, counts, strict=True)):
            if count:
                actual.append(np.array(host[index, 0]))
                expected.append(rows[text].logits[length - 1])
                chosen.append(int(tokens[index]))
        assert session.lengths.tolist() == [length for _, length in held]

    feed(30, 12, 21)
    feed(1, 1, 1)
    session.rows.release(1)
    held[1] = (3, 0)
    feed(1, 0, 1)
    feed(0, 40, 0)
    feed(1, 1, 1)
    session.rows.copy_prefix(1, 0, 33)
    session.rows.truncate(2, 5)
    held[0], held[2] = (3, 33), (2, 5)
    feed(1, 1, 1)
    feed(7, 0, 16)
    feed(1, 1, 1)
    return Led(np.stack(actual), np.stack(expected), np.array(chosen, np.int64))


def mean_kl(expected: Array, actual: Array) -> float:
    """Mean over positions of KL(softmax(expected) || softmax(actual)), nats; both [positions, vocab_size]."""
    import torch

    parts = []
    for start in range(0, len(expected), 64):
        p, q = (
            torch.from_numpy(part[start : start + 64]).to(device_name()).double().log_softmax(dim=-1)
            for part in (expected, actual)
        )
        parts.append((p.exp() * (p - q)).sum(dim=-1).cpu())
    return float(torch.cat(parts).mean())
