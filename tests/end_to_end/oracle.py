"""What the model says, from transformers alone; and engines and graphs led along it.

The reference is loaded by transformers' own readers, and its logits come from one forward of each unpadded row
without a cache, so that nothing of llmc's reading, padding or caching can be wrong on both sides.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime

from llmc.compiler.base.processors import physical_cores
from llmc.runtimes.session.engine import Session

Array = npt.NDArray[Any]
THREADS = physical_cores()
"""Of this process: threads that wait for each other on one core only spin."""


def load_eager(path: Path) -> Any:
    """transformers' model of a directory or a ``.gguf`` file: float32, eager attention."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.set_num_threads(THREADS)
    options: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}
    if path.suffix == ".gguf":
        path, options = path.parent, {**options, "gguf_file": path.name}
    return AutoModelForCausalLM.from_pretrained(str(path), **options).eval()


def whole_logits(model: Any, tokens: Sequence[int]) -> Array:
    """One row, unpadded, in one forward without a cache: [len(tokens), vocab_size] float32."""
    import torch

    with torch.inference_mode():
        return model(input_ids=torch.tensor([list(tokens)]), use_cache=False).logits[0].float().numpy()


def greedy(model: Any, prompt: Sequence[int], steps: int) -> list[int]:
    """transformers' own greedy continuation, end tokens not heeded."""
    import torch

    with torch.inference_mode():
        ids = torch.tensor([list(prompt)])
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=steps, eos_token_id=None
        )
    return made[0, len(prompt) :].tolist()


@dataclass(frozen=True)
class Row:
    """A prompt, its greedy continuation, and the logits of every position of both ([tokens, vocab_size])."""

    prompt: list[int]
    continuation: list[int]
    logits: Array

    @property
    def tokens(self) -> list[int]:
        return self.prompt + self.continuation


def reference_row(model: Any, prompt: Sequence[int], steps: int) -> Row:
    continuation = greedy(model, prompt, steps)
    return Row(list(prompt), continuation, whole_logits(model, [*prompt, *continuation]))


def pad(rows: Sequence[Sequence[int]], side: str) -> tuple[Array, Array]:
    """``input_ids`` and ``attention_mask`` [batch, longest]; what stands under a mask of 0 is a real token."""
    longest = max(map(len, rows))
    ids, mask = np.full((len(rows), longest), 11, np.int64), np.zeros((len(rows), longest), np.int64)
    for index, row in enumerate(rows):
        at = slice(longest - len(row), longest) if side == "left" else slice(0, len(row))
        ids[index, at], mask[index, at] = row, 1
    return ids, mask


class PortableGraph:
    """The portable graph on plain ONNX Runtime, by its documented inputs and outputs."""

    def __init__(self, directory: Path, threads: int = THREADS) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 3
        self._session = onnxruntime.InferenceSession(
            str(directory / "model.onnx"), options, providers=["CPUExecutionProvider"]
        )
        self._outputs = [item.name for item in self._session.get_outputs()]
        self.inputs = [item.name for item in self._session.get_inputs()]
        self._past = {i.name: i for i in self._session.get_inputs() if i.name.startswith("past_key_values.")}
        self.reset(1)

    def reset(self, batch: int) -> None:
        self._mask = np.zeros((batch, 0), np.int64)
        types = {"tensor(float)": np.float32, "tensor(float16)": np.float16}
        self._cache = {
            name: np.zeros([self._size(dim, batch) for dim in item.shape], types[item.type])
            for name, item in self._past.items()
        }

    @staticmethod
    def _size(dim: int | str, batch: int) -> int:
        """A dimension of an empty cache: the batch and the fixed ones are what they are, the length is 0."""
        return dim if isinstance(dim, int) else {"batch": batch}.get(dim, 0)

    def forward(self, ids: Array, mask: Array) -> Array:
        """Append columns: ``ids`` and ``mask`` [batch, seq]; logits [batch, seq, vocab_size]."""
        before = self._mask.sum(axis=1, keepdims=True)
        self._mask = np.concatenate([self._mask, mask], axis=1)
        positions = np.maximum(before + mask.cumsum(axis=1) - 1, 0)
        feeds = {"input_ids": ids, "attention_mask": self._mask, "position_ids": positions, **self._cache}
        feeds = {name: value for name, value in feeds.items() if name in self.inputs}
        results = dict(zip(self._outputs, self._session.run(self._outputs, feeds), strict=True))
        self._cache = {name: results[name.replace("past_key_values.", "present.")] for name in self._cache}
        return results["logits"]


@dataclass
class Agreement:
    """How far an engine led along the reference's own tokens is from it.

    Attributes:
        error: Largest difference of a logit; NaN counts as infinite.
        tokens: Whether each decoded token is the engine's own choice: greedy decoding then gives the same text.
    """

    error: float = 0.0
    tokens: bool = True

    def compare(self, actual: Array, expected: Array) -> None:
        assert actual.shape == expected.shape
        self.error = max(self.error, float(np.nan_to_num(np.abs(actual - expected), nan=np.inf).max(initial=0.0)))

    def choose(self, logits: Array, token: int) -> None:
        self.tokens = self.tokens and int(logits.argmax()) == token


def lead_graph(
    graph: PortableGraph, rows: Sequence[Row], *, side: str = "left", chunk: int = 0, steps: int = 64
) -> Agreement:
    """Prompts padded on ``side``, whole or in chunks, then ``steps`` tokens of their continuations one by one."""
    ids, mask = pad([row.prompt for row in rows], side)
    graph.reset(len(rows))
    result = Agreement()
    width = chunk or ids.shape[1]
    for start in range(0, ids.shape[1], width):
        part = slice(start, start + width)
        logits = graph.forward(ids[:, part], mask[:, part])
        for index, row in enumerate(rows):
            valid = logits[index, mask[index, part] == 1]
            done = int(mask[index, :start].sum())
            result.compare(valid, row.logits[done : done + len(valid)])
            if len(valid) and done + len(valid) == len(row.prompt):
                result.choose(valid[-1], row.continuation[0])
    _decode(lambda tokens: graph.forward(tokens, np.ones_like(tokens)), rows, steps, result)
    return result


def lead_session(session: Session, rows: Sequence[Row], *, chunk: int = 0, steps: int = 64) -> Agreement:
    """As :func:`lead_graph`, through a session: ragged chunks, and logits of all or of each row's last token."""
    ids, mask = pad([row.prompt for row in rows], "right")
    lengths = mask.sum(axis=1)
    steps = min(steps, len(rows[0].continuation))
    session.reset(len(rows), ids.shape[1] + steps)
    result = Agreement()
    width = chunk or ids.shape[1]
    for start in range(0, ids.shape[1], width):
        part = np.ascontiguousarray(ids[:, start : start + width])
        counts = np.clip(lengths - start, 0, part.shape[1])
        logits = session.forward(part, counts).host()
        for index, row in enumerate(rows):
            end = start + int(counts[index])
            if end == start:
                continue
            given = logits[index, : end - start]
            result.compare(given, row.logits[end - len(given) : end])
            if end == len(row.prompt):
                result.choose(given[-1], row.continuation[0])
    _decode(lambda tokens: session.forward(tokens).host(), rows, steps, result)
    assert session.lengths.tolist() == [len(row.prompt) + steps for row in rows]
    return result


def _decode(forward: Callable[[Array], Array], rows: Sequence[Row], steps: int, result: Agreement) -> None:
    for step in range(min(steps, len(rows[0].continuation))):
        logits = forward(np.array([[row.continuation[step]] for row in rows], np.int64))
        for index, row in enumerate(rows):
            result.compare(logits[index, 0], row.logits[len(row.prompt) + step])
            if step + 1 < len(row.continuation):
                result.choose(logits[index, 0], row.continuation[step + 1])
