"""onnxruntime-genai's own loop over an artifact, and the token ids that it gives."""

from __future__ import annotations

import importlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llmc.compiler.driver.genai_config import GENAI_CONFIG

from .oracle import THREADS


class GenaiLoop:
    """One model, opened as a program that knows nothing of llmc opens it."""

    def __init__(self, directory: Path, **decoder: Any) -> None:
        """Open a directory with ``genai_config.json``; ``decoder`` overlays settings of its decoder."""
        self._native: Any = importlib.import_module("onnxruntime_genai")
        config = self._native.Config(str(directory))
        options = {"intra_op_num_threads": THREADS, **decoder.pop("session_options", {})}
        config.overlay(json.dumps({"model": {"decoder": {**decoder, "session_options": options}}}))
        self._model = self._native.Model(config)
        model = json.loads((directory / GENAI_CONFIG).read_text())["model"]
        self._pad, self._ends = model["pad_token_id"], set(model.get("eos_token_id", ()))

    def encode(self, text: str) -> list[int]:
        """Token ids of a text by GenAI's own tokenizer."""
        return [int(token) for token in self._native.Tokenizer(self._model).encode(text)]

    def generate(
        self, prompts: Sequence[Sequence[int]], count: int, *, appended: int | None = None, chunk: int | None = None
    ) -> list[list[int]]:
        """Greedy tokens of each row up to its end token, which is left out.

        Args:
            prompts: One list per row; shorter ones are padded on the right.
            count: Most new tokens of a row.
            appended: Tokens of each ``append_tokens``; None: the whole prompt in one.
            chunk: GenAI's ``chunk_size``.
        """
        width = max(map(len, prompts))
        padded = np.full((len(prompts), width), self._pad, np.int32)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = prompt
        options = {"chunk_size": chunk} if chunk else {}
        parameters = self._native.GeneratorParams(self._model)
        parameters.set_search_options(do_sample=False, batch_size=len(prompts), max_length=width + count, **options)
        generator = self._native.Generator(self._model, parameters)
        for begin in range(0, width, appended or width):
            generator.append_tokens(padded[:, begin : begin + (appended or width)])
        while not generator.is_done():
            generator.generate_next_token()
        made = [generator.get_sequence(row)[width:] for row in range(len(prompts))]
        return [before_the_end([int(token) for token in row], self._ends) for row in made]


def before_the_end(tokens: Sequence[int], ends: set[int]) -> list[int]:
    """The tokens before the first end token."""
    return list(tokens[: next((place for place, token in enumerate(tokens) if token in ends), len(tokens))])
