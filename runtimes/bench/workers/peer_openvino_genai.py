"""OpenVINO GenAI as a peer, through its Python interface (2026.4), on the CPU.

In: a directory with ``openvino_model.xml``, made by optimum-intel or by llmc, requests on stdin (protocol.py).
Out: answers on stdout. It runs in the interpreter that has ``openvino-genai``: this file imports protocol.py and the
standard library, numpy and OpenVINO.

Times are those that GenAI itself records (``perf_metrics.raw_metrics``): from the call to the first token, and
between tokens. They include its choice of the token, as llmc's do; each step is fed the token that the step before
found, so only the prompt is the one that other subjects get. Tokens go in and come out as ids.

GenAI has two ways to run a model: ``paged``, its default where the model allows it, and ``stateful``, the model as it
is. A model that takes more from ``attention_mask`` than its attention does (llmc's, unless made with ``--logits
all``) is refused by the former. GenAI keeps the cache of earlier prompts (prefix caching) unless told otherwise, and
a prompt that it saw before costs next to nothing: it is off here.

Logits are those of the model as OpenVINO runs it by itself (GenAI hands out none), with the same options and
therefore in the same numbers: what ``stateful`` computes.

A float32 model of llmc's is computed in float32, as llmc does; the library by itself takes bfloat16 where the
processor has it, and rounds the cache to eight bits.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve

MODEL, MANIFEST, CONFIG = "openvino_model.xml", "llmc.json", "config.json"
BACKENDS = {"paged": "PA", "stateful": "SDPA"}
"""Variant's name -> GenAI's name."""
EXACT = {"INFERENCE_PRECISION_HINT": "f32", "KV_CACHE_PRECISION": "f32"}
WARM_PROMPT = 2
FOUR_BITS, EIGHT_BITS = {"u4", "i4"}, {"u8", "i8"}


@dataclass(frozen=True)
class ModelFacts:
    """What the files say about a model.

    Attributes:
        layers: Layers that keep keys and values.
        cache_numbers: Numbers that one token of one row adds to the cache, all layers.
        context: Most tokens of a row.
        weight_bytes: Bytes that a decode step reads.
        source: How that was found out.
        precision, logits: ``fp32``, ``int8``, ``int4``, …; ``last`` or ``all``.
    """

    vocab: int
    layers: int
    cache_numbers: int
    context: int
    weight_bytes: int
    source: str
    precision: str
    logits: str


class OpenVinoGenaiTarget:
    """Measures OpenVINO GenAI."""

    def __init__(self, backend: str = "stateful") -> None:
        """Load the library; ``backend`` is one of :data:`BACKENDS`.

        Raises:
            ValueError: another one.
        """
        if backend not in BACKENDS:
            raise ValueError(f"unknown backend {backend!r}; known: {', '.join(BACKENDS)}")
        self._backend = backend
        self._openvino: Any = importlib.import_module("openvino")
        self._native: Any = importlib.import_module("openvino_genai")
        self._pipeline: Any = None
        self._request: Any = None
        self._path = ""
        self._options: dict[str, Any] = {}
        self._facts: ModelFacts | None = None

    def prepare(self, source: str, cache: str) -> Prepared:
        """The directory as it is, and the variants that its model allows.

        Raises:
            RuntimeError: it is not such a directory.
        """
        facts = read_facts(self._openvino, Path(source))
        fitting = list(BACKENDS) if facts.logits == "all" else ["stateful"]
        return Prepared(source, {"ftype": facts.precision, "variants": fitting})

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Load the model.

        Raises:
            RuntimeError: no such directory, or GenAI refuses the model.
        """
        facts = read_facts(self._openvino, Path(path))
        count = threads or os.cpu_count() or 1
        self._path, self._options = path, {"INFERENCE_NUM_THREADS": count}
        if facts.precision == "fp32" and (Path(path) / MANIFEST).is_file():
            self._options.update(EXACT)
        options = {**self._options, "ATTENTION_BACKEND": BACKENDS[self._backend]}
        more = {}
        if self._backend == "paged":
            more["scheduler_config"] = self._native.SchedulerConfig()
            more["scheduler_config"].enable_prefix_caching = False
        self._pipeline = self._native.LLMPipeline(path, "CPU", **options, **more)
        self._facts = facts
        item_bytes = 4 if "KV_CACHE_PRECISION" in options else 1
        return {
            "runtime": "openvino-genai-cpu",
            "vocab_size": facts.vocab,
            "num_layers": facts.layers,
            "max_context": facts.context,
            "logits": facts.logits,
            "cache": "grow",
            "cache_bytes_per_token": facts.cache_numbers * item_bytes,
            "weight_bytes": facts.weight_bytes,
            "precision": facts.precision,
            "threads": count,
            "details": {
                "openvino_genai": str(self._native.__version__),
                "options": options,
                "prefix_caching": False,
                "weight_bytes_from": facts.source,
                "sampling": "greedy, end tokens not heeded; the found token is fed back",
            },
        }

    def run(self, request: RunRequest) -> RunTimes:
        """Prefill and decode one case on an empty cache.

        Raises:
            RuntimeError: nothing is open, the case is longer than the context, or GenAI failed.
        """
        facts = self._facts
        if facts is None or self._pipeline is None:
            raise RuntimeError("run before open")
        if request.capacity > facts.context:
            raise RuntimeError(f"prompt {request.prompt} + gen {request.gen} is beyond the context {facts.context}")
        tokens = request.prompt_tokens(facts.vocab)
        if request.warm_steps:
            self._generate([row[:WARM_PROMPT] for row in tokens], request.warm_steps + 1)
        metrics = self._generate(tokens, request.gen)
        ended = time.time()
        first, steps = split_times(metrics, request.gen)
        return RunTimes(first, steps, decode_window=(ended - sum(steps), ended))

    def _generate(self, tokens: list[list[int]], count: int) -> Any:
        """Generate ``count`` tokens for each row [batch][prompt]; what GenAI recorded."""
        import numpy as np

        config = self._native.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = count
        config.ignore_eos, config.do_sample = True, False
        # A model without generation_config.json has none, and GenAI asks for one.
        config.eos_token_id, config.stop_token_ids = 0, {0}
        ids = np.array(tokens, np.int64)
        tensor = self._openvino.Tensor
        inputs = self._native.TokenizedInputs(tensor(ids), tensor(np.ones_like(ids)))
        result = self._pipeline.generate(inputs, config)
        made = [len(row) for row in result.tokens]
        if made != [count] * len(tokens):
            raise RuntimeError(f"GenAI made {made} tokens, not {count} a row")
        return result.perf_metrics.raw_metrics

    def logits(self, tokens: Sequence[int], first: int, file: str) -> None:
        """Write the logits after each token from ``first`` to the last but one of a text of its own.

        The text is one call, or, where a model gives its last position's alone, one for each of these tokens.

        Raises:
            RuntimeError: nothing is open, the text is longer than the context, or OpenVINO failed.
        """
        import numpy as np

        facts = self._facts
        if facts is None:
            raise RuntimeError("logits before open")
        if len(tokens) > facts.context:
            raise RuntimeError(f"{len(tokens)} tokens are beyond the context {facts.context}")
        if self._request is None:
            self._pipeline = None  # the weights once in memory, not twice
            model = self._openvino.Core().read_model(str(Path(self._path) / MODEL))
            self._request = self._openvino.compile_model(model, "CPU", self._options).create_infer_request()
        self._request.reset_state()
        ids, last = np.array(tokens, np.int64)[None], len(tokens) - 1
        singles = [(at, at + 1) for at in range(first + 1, last)]
        pieces = [(0, last)] if facts.logits == "all" else [(0, first + 1), *singles]
        with Path(file).open("wb") as output:
            for begin, end in pieces:
                rows = self._infer(ids[:, begin:end], begin)
                output.write(rows[first if facts.logits == "all" else -1 :].tobytes())

    def _infer(self, ids: Any, past: int) -> Any:
        """Logits [tokens or 1, vocab] float32 of ``ids`` [1, tokens] behind ``past`` tokens."""
        import numpy as np

        end = past + ids.shape[1]
        known = {
            "input_ids": ids,
            "attention_mask": np.ones((1, end), np.int64),
            "position_ids": np.arange(past, end, dtype=np.int64)[None],
            "beam_idx": np.zeros(1, np.int32),
        }
        names = [name for item in self._request.model_inputs for name in item.get_names()]
        self._request.infer({name: value for name, value in known.items() if name in names})
        return np.asarray(self._request.get_tensor("logits").data, np.float32)[0]

    def close(self) -> None:
        """Free the model."""
        self._pipeline = self._request = self._facts = None


def split_times(metrics: Any, count: int) -> tuple[float, tuple[float, ...]]:
    """Seconds to the first token and of each further one, from GenAI's ``RawPerfMetrics``.

    Raises:
        RuntimeError: it recorded another number of tokens.
    """
    # Milliseconds; with several rows, some versions record each row's token.
    times = sorted(set(metrics.m_new_token_times))
    if len(times) != count:
        raise RuntimeError(f"GenAI recorded the times of {len(times)} tokens, not of {count}")
    steps = tuple((after - before) / 1e3 for before, after in zip(times, times[1:]))  # noqa: B905, RUF007 (Python 3.9)
    return float(metrics.m_times_to_first_token[0]) / 1e6, steps


def read_facts(openvino: Any, directory: Path) -> ModelFacts:
    """Read the model's files.

    Raises:
        RuntimeError: they are not there, or hold another kind of model.
    """
    if not (directory / MODEL).is_file():
        raise RuntimeError(f"{directory} holds no {MODEL}; make one: llmc compile MODEL --target openvino")
    model = openvino.Core().read_model(str(directory / MODEL))
    logits = next((item for item in model.outputs if "logits" in item.get_names()), None)
    nodes = list(model.get_ops())
    states = [node.get_output_partial_shape(0) for node in nodes if node.get_type_name() == "ReadValue"]
    if logits is None or not states:
        raise RuntimeError(f"{directory / MODEL} is no language model that keeps its own KV cache")
    manifest = json.loads((directory / MANIFEST).read_text()) if (directory / MANIFEST).is_file() else {}
    config = json.loads((directory / CONFIG).read_text()) if (directory / CONFIG).is_file() else {}
    context = manifest.get("max_context") or config.get("max_position_embeddings") or 1 << 30
    size = (directory / MODEL).with_suffix(".bin").stat().st_size
    made_by_llmc = "weight_bytes" in manifest
    shape = logits.get_partial_shape()
    return ModelFacts(
        vocab=shape[2].get_length(),
        layers=len(states) // 2,
        cache_numbers=sum(math.prod(dim.get_length() for dim in state if dim.is_static) for state in states),
        context=int(context),
        weight_bytes=int(manifest["weight_bytes"]) if made_by_llmc else size,
        source="llmc.json" if made_by_llmc else "the weights file's size",
        precision=precision_of(nodes),
        # llmc's last position is known only from the mask, so the dimension has no number.
        logits=str(manifest.get("logits", "all")),
    )


def precision_of(nodes: list[Any]) -> str:
    """By the smallest of the large constants' types."""
    large = {
        node.get_element_type().get_type_name()
        for node in nodes
        if node.get_type_name() == "Constant" and math.prod(node.get_output_shape(0)) >= 1 << 12
    }
    if large & FOUR_BITS:
        return "int4"
    if large & EIGHT_BITS:
        return "int8"
    return "fp16" if "f16" in large else "bf16" if "bf16" in large else "fp32"


if __name__ == "__main__":
    serve(OpenVinoGenaiTarget(*sys.argv[1:]))
