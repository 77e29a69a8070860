"""vLLM as a peer, through its Python interface (0.26), on one GPU.

In: a folder with config.json and weights, requests on stdin (protocol.py). Out: answers on stdout. It runs in the
interpreter that has ``vllm``: this file imports protocol.py, the standard library, torch and vLLM.

Requests go into the engine that ``vllm.LLM`` makes, and its steps are run one by one: ``first_token_s`` lasts until
every row has its first token; ``step_s`` are the gaps between steps in which every row got one token, so that steps
which still read a prompt do not count as decoding. Rows run a few tokens longer than asked for, as rows of a batch
may begin in different steps. Sampling is greedy and part of the step; each step is fed the token that the step before
found; nothing is turned into text.

Prefix caching is off: rounds warm up with their prompts, and a prompt that is in the cache costs next to nothing.
CUDA graphs are recorded for prompts, too (``max_cudagraph_capture_size``): without that its time to the first token
is launch by launch. Weights are the checkpoint's: with random ones (``load_format=dummy``) vLLM ignores some
quantized configurations in silence.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve

TYPES = {"auto": "auto", "bfloat16": "bf16", "float16": "fp16"}
SPARE_STEPS = 24
"""Tokens more than asked for: rows that begin late then still share enough steps with the others."""
WARM_PROMPT = 8
CAPTURE_SIZE = 2048
SHARE_OF_MEMORY = 0.9
QUIET = {
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    # flashinfer compiles its sampler at the first use, where its package is there at all; greedy needs none.
    "VLLM_USE_FLASHINFER_SAMPLER": "0",
}
WEIGHTS = "*.safetensors"


class VllmTarget:
    """Measures vLLM."""

    def __init__(self, dtype: str = "auto") -> None:
        """Load the library; ``dtype`` is one of :data:`TYPES`.

        Raises:
            ValueError: another one.
        """
        if dtype not in TYPES:
            raise ValueError(f"unknown type {dtype!r}; known: {', '.join(TYPES)}")
        for name, value in QUIET.items():
            os.environ.setdefault(name, value)
        self._native: Any = importlib.import_module("vllm")
        self._dtype = dtype
        self._engine: Any = None
        self._vocab = 0
        self._context = 0
        self._numbers = itertools.count()

    def prepare(self, source: str, cache: str) -> Prepared:
        """The folder as it is.

        Raises:
            RuntimeError: no configuration or no weights there, or no GPU.
        """
        if not (Path(source) / "config.json").is_file() or not any(Path(source).glob(WEIGHTS)):
            raise RuntimeError(f"{source} holds no config.json and safetensors")
        torch = importlib.import_module("torch")
        if not torch.cuda.is_available():
            raise RuntimeError("vLLM runs on a GPU, and there is none here: leave this peer away")
        return Prepared(source, {"ftype": TYPES[self._dtype]})

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Load the weights and record the graphs: up to a minute. ``threads`` does not count.

        Raises:
            RuntimeError: vLLM refuses the model.
        """
        self._engine = self._native.LLM(
            model=path,
            dtype=self._dtype,
            enable_prefix_caching=False,
            gpu_memory_utilization=SHARE_OF_MEMORY,
            compilation_config={"max_cudagraph_capture_size": CAPTURE_SIZE},
        ).llm_engine
        model = self._engine.model_config
        config = json.loads((Path(path) / "config.json").read_text())
        self._vocab, self._context = int(model.get_vocab_size()), int(model.max_model_len)
        dtype = str(model.dtype).replace("torch.", "")
        return {
            "runtime": "vllm",
            "vocab_size": self._vocab,
            "num_layers": int((config.get("text_config") or config)["num_hidden_layers"]),
            "max_context": self._context,
            "logits": "last",
            "cache": "shared",
            "cache_bytes_per_token": 0,
            "weight_bytes": sum(file.stat().st_size for file in Path(path).glob(WEIGHTS)),
            "precision": TYPES.get(dtype, dtype),
            "threads": 0,
            "details": {
                "vllm": str(self._native.__version__),
                "device": "cuda",
                "prefix_caching": False,
                "quantization": str(getattr(model, "quantization", None)),
                "max_cudagraph_capture_size": CAPTURE_SIZE,
                "weight_bytes_from": "the files' sizes",
                "sampling": "greedy, end tokens not heeded; the found token is fed back",
            },
        }

    def run(self, request: RunRequest) -> RunTimes:
        """Prefill and decode one case.

        Raises:
            RuntimeError: nothing is open, the case is longer than the context, or too few steps had all rows.
        """
        if self._engine is None:
            raise RuntimeError("run before open")
        if request.prompt + request.gen > self._context:
            raise RuntimeError(
                f"prompt {request.prompt} + gen {request.gen} is beyond the context {self._context} of the model"
            )
        prompts = request.prompt_tokens(self._vocab)
        if request.warm_steps:
            self._generate([row[:WARM_PROMPT] for row in prompts], request.warm_steps + 1)
        count = min(request.gen + (SPARE_STEPS if request.batch > 1 else 0), self._context - request.prompt)
        window = time.time()
        first, ticks = self._generate(prompts, count)
        steps = decode_gaps(ticks, request.batch)[: request.gen - 1]
        if len(steps) < request.gen - 1:
            raise RuntimeError(
                f"only {len(steps)} of vLLM's steps decoded all {request.batch} rows, and {request.gen - 1} were "
                "asked for: it runs fewer at a time"
            )
        return RunTimes(first, steps, decode_window=(window + first, window + first + sum(steps)))

    def _generate(self, prompts: list[list[int]], count: int) -> tuple[float, list[tuple[float, int]]]:
        """Seconds until every row has a token; of each step, its end in seconds from the start and its tokens."""
        sampling = self._native.SamplingParams(
            temperature=0.0,
            max_tokens=count,
            ignore_eos=True,
            detokenize=False,
            output_kind=importlib.import_module("vllm.sampling_params").RequestOutputKind.DELTA,
        )
        clock = time.perf_counter
        begin = clock()
        for row in prompts:
            self._engine.add_request(str(next(self._numbers)), {"prompt_token_ids": row}, sampling)
        begun: set[str] = set()
        first, ticks = 0.0, []
        while self._engine.has_unfinished_requests():
            outputs = [(each.request_id, len(each.outputs[0].token_ids)) for each in self._engine.step()]
            now = clock() - begin
            waiting = len(begun) < len(prompts)
            begun.update(name for name, tokens in outputs if tokens)
            if waiting and len(begun) == len(prompts):
                first = now
            ticks.append((now, sum(tokens for _, tokens in outputs)))
        return first, ticks

    def device_bytes(self) -> int | None:
        """Not known here: the engine is a process of its own."""
        return None

    def close(self) -> None:
        """Free the engine."""
        self._engine = None


def decode_gaps(ticks: list[tuple[float, int]], rows: int) -> tuple[float, ...]:
    """Seconds between neighbouring steps that gave one token to each row; ticks are (moment, tokens)."""
    pairs = zip(ticks, ticks[1:])  # noqa: B905, RUF007 (Python 3.9)
    return tuple(after[0] - before[0] for before, after in pairs if before[1] == after[1] == rows)


if __name__ == "__main__":
    serve(VllmTarget(*sys.argv[1:]))
