"""CTranslate2 as a peer, through its Python interface (4.8), on the CPU.

In: a folder of its converter's (``model.bin``, ``vocabulary.json``), requests on stdin (protocol.py). Out: answers on
stdout. It runs in the interpreter that has ``ctranslate2``: this file imports protocol.py, the standard library and
CTranslate2.

What is timed is ``generate_batch`` with its callback for each token, greedy and with no token that ends a row: from
the call to the moment at which all rows have their first token, and between the moments at which all have the next.
Each step is fed the token that the step before found, so only the prompt is the one that other subjects get.

``compute_type`` is ``default``: the numbers that the model was converted to. The model runs in one thread pool
(``inter_threads=1``), as several would run several batches at a time and none of them faster.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve

MODEL, VOCABULARY = "model.bin", "vocabulary.json"
WARM_PROMPT = 2
PRECISIONS = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}


class CTranslate2Target:
    """Measures CTranslate2."""

    def __init__(self) -> None:
        """Load the library."""
        self._native: Any = importlib.import_module("ctranslate2")
        self._generator: Any = None
        self._tokens: list[str] = []

    def prepare(self, source: str, cache: str) -> Prepared:
        """The folder as it is.

        Raises:
            RuntimeError: it is not one of the converter's.
        """
        read_vocabulary(Path(source))
        return Prepared(source)

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Load the model.

        Raises:
            RuntimeError: no such folder, or CTranslate2 refuses the model.
        """
        self._tokens = read_vocabulary(Path(path))
        self._generator = self._native.Generator(
            path, device="cpu", compute_type="default", inter_threads=1, intra_threads=threads or 0
        )
        computed = str(self._generator.compute_type)
        return {
            "runtime": "ctranslate2-cpu",
            "vocab_size": len(self._tokens),
            "num_layers": 0,
            # The model does not say: positions that it cannot hold are refused when they come.
            "max_context": 1 << 30,
            "logits": "last",
            "cache": "grow",
            "cache_bytes_per_token": 0,
            "weight_bytes": (Path(path) / MODEL).stat().st_size,
            "precision": PRECISIONS.get(computed, computed.partition("_")[0]),
            "threads": threads or 0,
            "details": {
                "ctranslate2": str(self._native.__version__),
                "compute_type": computed,
                "weight_bytes_from": "the model file's size",
                "sampling": "greedy, end tokens not heeded; the found token is fed back",
            },
        }

    def run(self, request: RunRequest) -> RunTimes:
        """Prefill and decode one case on an empty cache.

        Raises:
            RuntimeError: nothing is open, or CTranslate2 made another number of tokens.
        """
        if self._generator is None:
            raise RuntimeError("run before open")
        prompts = [[self._tokens[token] for token in row] for row in request.prompt_tokens(len(self._tokens))]
        if request.warm_steps:
            self._generate([row[:WARM_PROMPT] for row in prompts], request.warm_steps + 1)
        begin, window = time.perf_counter(), time.time()
        moments = self._generate(prompts, request.gen)
        first = moments[0] - begin
        steps = tuple(after - before for before, after in zip(moments, moments[1:]))  # noqa: B905, RUF007 (Python 3.9)
        return RunTimes(first, steps, decode_window=(window + first, window + first + sum(steps)))

    def _generate(self, prompts: list[list[str]], count: int) -> list[float]:
        """Generate ``count`` tokens for each row; the moment at which the last row had each of them."""
        moments = [0.0] * count
        seen = [0] * count

        def note(result: Any) -> bool:
            moments[result.step] = time.perf_counter()
            seen[result.step] += 1
            return False

        self._generator.generate_batch(
            prompts,
            max_batch_size=len(prompts),
            beam_size=1,
            sampling_topk=1,
            min_length=count,
            max_length=count,
            end_token=[],
            include_prompt_in_result=False,
            callback=note,
        )
        if seen != [len(prompts)] * count:
            raise RuntimeError(f"CTranslate2 made {sum(seen)} tokens, not {count} for each of {len(prompts)} rows")
        return moments

    def logits(self, tokens: Sequence[int], first: int, file: str) -> None:
        """Write the logits after each token from ``first`` to the last but one of a text of its own.

        Raises:
            RuntimeError: nothing is open, or CTranslate2 failed.
        """
        import numpy as np

        if self._generator is None:
            raise RuntimeError("logits before open")
        found = self._generator.forward_batch([[self._tokens[token] for token in tokens[:-1]]])
        rows = np.array(found.to(self._native.DataType.float32), np.float32)[0, first:]
        with Path(file).open("wb") as output:
            output.write(rows.tobytes())

    def close(self) -> None:
        """Free the model."""
        self._generator = None


def read_vocabulary(directory: Path) -> list[str]:
    """Tokens by id.

    Raises:
        RuntimeError: the folder is not one of the converter's.
    """
    if not (directory / MODEL).is_file() or not (directory / VOCABULARY).is_file():
        raise RuntimeError(f"{directory} holds no {MODEL} and {VOCABULARY}; ct2-transformers-converter makes them")
    return [str(token) for token in json.loads((directory / VOCABULARY).read_text(encoding="utf-8"))]


if __name__ == "__main__":
    serve(CTranslate2Target(*sys.argv[1:]))
