"""ONNX Runtime GenAI as a peer, through its Python interface (0.18), on CUDA or on the CPU.

In: a directory with ``genai_config.json`` and its graph, made by its model builder or by llmc, requests on stdin
(protocol.py).
Out: answers on stdout. It runs in the interpreter that has ``onnxruntime-genai-cuda`` or ``onnxruntime-genai``: this
file imports protocol.py, the standard library and numpy, and onnx where it is installed.

What is timed is what a program that generates waits for: ``append_tokens`` and ``generate_next_token`` for the first
token, ``generate_next_token`` for each further one, and after each ``get_next_tokens``, which copies the ids to the
host: a call that only queues work cannot look fast. Unlike llama.cpp's figures these include the arg-max, as llmc's
do; each step is fed the token that the step before found, so only the prompt is the one that other subjects get.

A Generator is made for each run, outside of the timed part, and warmed with a short prompt; ``rewind_to(0)`` then
empties its cache. Warming another one would not do: a captured CUDA graph belongs to its Generator, and capturing it
takes longer than a step; two warm steps do it. ``min_length`` keeps an end-of-sequence token from ending a row.
"""

from __future__ import annotations

import importlib
import json
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve

VARIANTS = {"cuda": ["graph", "launches"], "cpu": ["cpu"]}
"""Provider -> names of the variants that measure it."""
PROVIDERS = tuple(VARIANTS)
CONFIG_NAME = "genai_config.json"
WARM_PROMPT = 2  # one token would be a decode step's shape

# ONNX's element types by number: bits, and the name of a precision where it is one of weights.
BITS = {1: 32, 2: 8, 3: 8, 4: 16, 5: 16, 6: 32, 7: 64, 9: 8, 10: 16, 11: 64, 16: 16, 17: 8, 19: 8, 21: 4, 22: 4}
PRECISIONS = {1: "fp32", 10: "fp16", 16: "bf16"}


@dataclass(frozen=True)
class Geometry:
    """What ``genai_config.json`` says: the graph's file name, sizes, the most tokens of a row (``context``), the
    token that marks padding, and each provider's options by its name.
    """

    graph: str
    vocab: int
    hidden: int
    layers: int
    kv_heads: int
    head_size: int
    context: int
    pad: int
    provider_options: Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class GraphFacts:
    """What a graph says about the work of a decode step.

    Attributes:
        weight_bytes: Weights without the embedding table and the tables of rotary embeddings.
        source: How that was found out.
        precision: ``fp16``, ``int4``, …
        logits: ``last`` where the head sees a prompt's last position only, else ``all``.
        cache_item_bytes: Bytes of one number of the KV cache.
    """

    weight_bytes: int
    source: str
    precision: str
    logits: str
    cache_item_bytes: int


class GenaiTarget:
    """Measures ONNX Runtime GenAI."""

    def __init__(self, provider: str = "cuda", launches: str = "") -> None:
        """Load the library.

        Args:
            provider: One of :data:`PROVIDERS`.
            launches: Anything: no CUDA graph, whatever ``genai_config.json`` says. With one, a prompt of several rows
                is refused (its mask is as wide as the cache, so the attention takes it for a later chunk).

        Raises:
            ValueError: another provider.
        """
        if provider not in PROVIDERS:
            raise ValueError(f"unknown provider {provider!r}; known: {', '.join(PROVIDERS)}")
        self._provider, self._launches = provider, bool(launches)
        self._native: Any = importlib.import_module("onnxruntime_genai")
        if hasattr(self._native, "disable_telemetry_events"):
            self._native.disable_telemetry_events()
        self._model: Any = None
        self._geometry: Geometry | None = None

    def prepare(self, source: str, cache: str) -> Prepared:
        """The directory as it is, and the variants for the provider that it is made for.

        Raises:
            RuntimeError: it is not such a directory.
        """
        geometry = read_geometry(Path(source))
        provider = "cuda" if "cuda" in geometry.provider_options else "cpu"
        facts = read_graph(Path(source) / geometry.graph, geometry, provider)
        return Prepared(source, {"ftype": facts.precision, "variants": VARIANTS[provider]})

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Load the model. ``threads`` counts on the CPU only.

        Raises:
            RuntimeError: not a directory of the builder's, or GenAI cannot load it.
        """
        geometry = read_geometry(Path(path))
        config = self._native.Config(path)
        config.clear_providers()
        if self._provider == "cuda":
            config.append_provider("cuda")
            for name, value in self._provider_options(geometry).items():
                config.set_provider_option("cuda", name, value)
        elif threads is not None:
            options = {"intra_op_num_threads": threads}
            config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = self._native.Model(config)
        self._geometry = geometry
        return self._info(Path(path), geometry, threads)

    def _provider_options(self, geometry: Geometry) -> dict[str, str]:
        options = dict(geometry.provider_options.get("cuda", {}))
        return {**options, "enable_cuda_graph": "0"} if self._launches else options

    def _info(self, path: Path, geometry: Geometry, threads: int | None) -> dict[str, Any]:
        facts = read_graph(path / geometry.graph, geometry, self._provider)
        on_device = self._provider == "cuda"
        options = self._provider_options(geometry)
        cache_width = geometry.layers * geometry.kv_heads * geometry.head_size
        return {
            "runtime": f"onnxruntime-genai-{self._provider}",
            "vocab_size": geometry.vocab,
            "num_layers": geometry.layers,
            "max_context": geometry.context,
            "logits": facts.logits,
            "cache": "shared",
            "cache_bytes_per_token": 2 * cache_width * facts.cache_item_bytes,
            "weight_bytes": facts.weight_bytes,
            "precision": facts.precision,
            "threads": 0 if on_device else threads or os.cpu_count() or 1,
            "details": {
                "onnxruntime_genai": str(self._native.__version__),
                "device": str(self._model.device_type),
                "provider_options": dict(options) if on_device else {},
                "cuda_graph": on_device and options.get("enable_cuda_graph") == "1",
                "weight_bytes_from": facts.source,
                "sampling": "greedy, min_length = max_length; the found token is fed back",
            },
        }

    def run(self, request: RunRequest) -> RunTimes:
        """Prefill and decode one case with a Generator of its own.

        Raises:
            RuntimeError: nothing is open, the case is longer than the context, or GenAI failed.
        """
        geometry = self._geometry
        if geometry is None:
            raise RuntimeError("run before open")
        length = request.prompt + request.gen
        if length > geometry.context:
            raise RuntimeError(
                f"prompt {request.prompt} + gen {request.gen} is beyond the context {geometry.context}"
            )
        parameters = self._native.GeneratorParams(self._model)
        parameters.set_search_options(
            do_sample=False,
            num_beams=1,
            batch_size=request.batch,
            max_length=length,
            min_length=length,
            past_present_share_buffer=True,
        )
        generator = self._native.Generator(self._model, parameters)
        prompt = prompt_array(request, geometry)
        if request.warm_steps:
            short = prompt[:, :WARM_PROMPT].copy()
            _generate(generator, short, min(request.warm_steps + 1, length - short.shape[1]))
            generator.rewind_to(0)
        ticks = _generate(generator, prompt, request.gen)
        ended = time.time()
        return RunTimes(ticks[0], tuple(ticks[1:]), decode_window=(ended - sum(ticks[1:]), ended))

    def logits(self, tokens: Sequence[int], first: int, file: str) -> None:
        """Write the logits after each token from ``first`` to the last but one of a text of its own.

        GenAI hands out those of the last token that it was given, as the head of a model made with
        ``prune_lm_head`` sees no other: the tokens behind ``first`` are given to it one by one.

        Raises:
            RuntimeError: nothing is open, the text is longer than the context or holds the token that marks padding,
                or GenAI failed.
        """
        import numpy as np

        geometry = self._geometry
        if geometry is None:
            raise RuntimeError("logits before open")
        if len(tokens) > geometry.context:
            raise RuntimeError(f"{len(tokens)} tokens are beyond the context {geometry.context}")
        if geometry.pad in tokens:
            raise RuntimeError(f"the text holds token {geometry.pad}, which GenAI takes for padding and does not see")
        parameters = self._native.GeneratorParams(self._model)
        parameters.set_search_options(
            do_sample=False, num_beams=1, batch_size=1, max_length=len(tokens), past_present_share_buffer=True
        )
        generator = self._native.Generator(self._model, parameters)
        ids = np.array(tokens, dtype=np.int32)[None]
        with Path(file).open("wb") as output:
            for begin, end in [(0, first + 1), *((at, at + 1) for at in range(first + 1, len(tokens) - 1))]:
                generator.append_tokens(np.ascontiguousarray(ids[:, begin:end]))
                rows = np.asarray(generator.get_logits(), np.float32).reshape(-1, geometry.vocab)
                output.write(rows[-1].tobytes())

    def close(self) -> None:
        """Free the model."""
        self._model = self._geometry = None


def _generate(generator: Any, prompt: Any, count: int) -> list[float]:
    """Append ``prompt`` [batch, tokens] and generate ``count`` tokens; the seconds that each took."""
    clock = time.perf_counter
    seconds = []
    before = clock()
    generator.append_tokens(prompt)
    for _ in range(count):
        generator.generate_next_token()
        generator.get_next_tokens()
        now = clock()
        seconds.append(now - before)
        before = now
    return seconds


def prompt_array(request: RunRequest, geometry: Geometry) -> Any:
    """The request's prompts, [batch, prompt] int32; a padding token, which GenAI would mask, becomes another one."""
    import numpy as np

    tokens = np.array(request.prompt_tokens(geometry.vocab), dtype=np.int32)
    other = (geometry.pad + 1) % geometry.vocab
    return np.ascontiguousarray(np.where(tokens == geometry.pad, other, tokens), dtype=np.int32)


def read_geometry(directory: Path) -> Geometry:
    """Read ``genai_config.json``.

    Raises:
        RuntimeError: it is not there, or lacks something.
    """
    try:
        model = json.loads((directory / CONFIG_NAME).read_text())["model"]
        decoder = model["decoder"]
        session = decoder.get("session_options", {})
        options = {name: given for each in session.get("provider_options", []) for name, given in each.items()}
        return Geometry(
            graph=decoder["filename"],
            vocab=int(model["vocab_size"]),
            hidden=int(decoder["hidden_size"]),
            layers=int(decoder["num_hidden_layers"]),
            kv_heads=int(decoder["num_key_value_heads"]),
            head_size=int(decoder["head_size"]),
            context=int(model["context_length"]),
            pad=int(model["pad_token_id"]),
            provider_options={name.lower(): dict(given) for name, given in options.items()},
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RuntimeError(f"{directory} is not a directory that GenAI can open: {error!r}") from error


def read_graph(path: Path, geometry: Geometry, provider: str) -> GraphFacts:
    """What the graph at ``path`` says; a guess from its size where onnx is not installed.

    Raises:
        RuntimeError: there is no such graph.
    """
    if not path.is_file():
        raise RuntimeError(f"{path} does not exist")
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError:
        return guess_facts(path, geometry, 2 if provider == "cuda" else 4)
    return graph_facts(onnx.load(str(path), load_external_data=False).graph)


def graph_facts(graph: Any) -> GraphFacts:
    """Facts of an ``onnx.GraphProto`` whose external data need not be there."""
    sizes = {each.name: math.prod(each.dims) * BITS.get(each.data_type, 8) // 8 for each in graph.initializer}
    uses: dict[str, int] = {}
    embedding: set[str] = set()
    rotary: set[str] = set()
    bits = set()
    for node in graph.node:
        for name in node.input:
            uses[name] = uses.get(name, 0) + 1
        if node.op_type in ("Gather", "GatherBlockQuantized") and node.input[1] == "input_ids":
            embedding |= {node.input[0], *node.input[2:]}
        if node.op_type == "GroupQueryAttention":
            rotary |= set(node.input[7:9])  # tables of which a step reads one row
        if node.op_type == "MatMulNBits":
            bits |= {attribute.i for attribute in node.attribute if attribute.name == "bits"}
    # A table that the head reads too (tied) is read whole in each step and counts.
    left_out = rotary | {name for name in embedding if uses[name] == 1}
    by_type: dict[int, int] = {}
    for each in graph.initializer:
        by_type[each.data_type] = by_type.get(each.data_type, 0) + sizes[each.name]
    largest = max(by_type, key=lambda kind: by_type[kind]) if by_type else 1
    logits: Any = next((each.type.tensor_type.shape.dim for each in graph.output if each.name == "logits"), ())
    cache = next((each.type.tensor_type.elem_type for each in graph.input if each.name.endswith(".key")), largest)
    return GraphFacts(
        weight_bytes=sum(size for name, size in sizes.items() if name not in left_out),
        source="the graph's initializers",
        precision=f"int{min(bits)}" if bits else PRECISIONS.get(largest, f"type {largest}"),
        logits="last" if len(logits) == 3 and logits[1].dim_value == 1 else "all",
        cache_item_bytes=BITS[cache] // 8,
    )


def guess_facts(path: Path, geometry: Geometry, item_bytes: int) -> GraphFacts:
    """Facts from the names in a graph's bytes and from the size of its data file, floats of ``item_bytes`` bytes."""
    content = path.read_bytes()
    data = path.with_name(path.name + ".data")
    size = data.stat().st_size if data.is_file() else len(content)
    # The builder gives an embedding this name where it is a table of its own, not the head's.
    embedding = geometry.vocab * geometry.hidden * item_bytes if b"model.embed_tokens.weight" in content else 0
    return GraphFacts(
        weight_bytes=max(0, size - embedding),
        source="the data file's size, less the embedding table",
        precision="int4 or int8" if b"MatMulNBits" in content else {2: "fp16", 4: "fp32"}[item_bytes],
        logits="last" if b"/lm_head/prune/" in content else "all",
        cache_item_bytes=item_bytes,
    )


if __name__ == "__main__":
    serve(GenaiTarget(*sys.argv[1:]))
