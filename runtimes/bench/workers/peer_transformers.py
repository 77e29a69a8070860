"""transformers as a peer, on a CUDA device where there is one.

In: a directory with ``config.json``, with or without weights; requests on stdin (protocol.py).
Out: answers on stdout. It runs in the interpreter that has torch and transformers: this file imports these,
protocol.py, ticks.py and the standard library.

Four variants, the model's own choice of attention (``sdpa`` as a rule) in all:

* ``eager``: a ``DynamicCache`` and the model's forward, operator by operator;
* ``compile``: a ``StaticCache`` as long as the case needs and ``torch.compile(mode="reduce-overhead",
  fullgraph=True)`` of the decode step, which is what ``generate`` does with a static cache; the prefill stays eager;
* ``loop``: the same compiled step in the loop that decoding is: a step's token is the next step's input, and the host
  has read it (to stream it, to see whether it ends the text) before it launches that step;
* ``generate``: what a user runs, ``model.generate`` with ``cache_implementation="static"``, greedy, without a token
  that ends it. On CUDA it compiles the decode step by itself, on a CPU nothing.

In the first three a decode step is a forward of one token for each row and an arg-max on the device; the gaps between
steps are the device's, from CUDA events recorded after each step (on a CPU, the host's clock). In the first two the
host reads no token until all steps are launched, so launches queue as they do in a loop that need not look at its
tokens, which are given and not found; those found are fetched at the end, in the decode part's window. The time to
the first token is the host's, until it has it.

``generate`` feeds each step the token that it found and hands a step's tokens, copied to the host, to a streamer; the
host's clock at these calls gives the times. They include its bookkeeping and its look at each token.

Without weights beside ``config.json`` the model is made on the device with random ones: what is measured is the
geometry's speed, and the details say so.
"""

from __future__ import annotations

import gc
import inspect
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve
from llmc.runtimes.bench.workers.ticks import StreamTicks, make_ticks

VARIANTS = ("eager", "compile", "loop", "generate")
COMPILED = {"compile", "loop"}
DTYPES = {"float16": "fp16", "bfloat16": "bf16", "float32": "fp32"}
"""torch's name of a type -> its name in the report."""
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin")
RANDOM_STD = 0.02
# A CUDA graph is recorded by the second call and replayed from the third on.
COMPILE_WARM_STEPS = 4
# Each shape of a case is one more version of the same compiled function; the default limit is 8.
SHAPES_LIMIT = 64
EXPERT_COUNTS = ("num_experts", "num_local_experts", "n_routed_experts")


class TransformersTarget:
    """Measures a causal language model of transformers."""

    def __init__(self, variant: str = "eager", dtype: str = "auto") -> None:
        """Choose how to run.

        Args:
            variant: One of :data:`VARIANTS`.
            dtype: ``float16``, ``bfloat16`` or ``float32``; ``auto``: the checkpoint's own if it has 16 bits, else
                float16.

        Raises:
            ValueError: another variant or type.
        """
        if variant not in VARIANTS or dtype not in {"auto", *DTYPES}:
            raise ValueError(f"variant {variant!r}, dtype {dtype!r}: use {VARIANTS} and auto or {tuple(DTYPES)}")
        self._variant, self._dtype = variant, dtype
        self._model: Any = None
        self._info: dict[str, Any] = {}
        self._static: dict[tuple[int, int], tuple[Any, Any]] = {}
        self._generated: tuple[int, int, int] | None = None
        self._step: Callable[..., Any] = _no_model
        self._keeps_last = False

    def prepare(self, source: str, cache: str) -> Prepared:
        """The directory is opened as it is; checked here so that a wrong one is named before anything is measured.

        Raises:
            FileNotFoundError: no ``config.json``.
        """
        return Prepared(source, {"ftype": DTYPES[self._type_name(source)]})

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Load the weights onto the device, or make random ones there."""
        import torch
        import transformers

        if threads:
            torch.set_num_threads(threads)
        device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
        has_weights = any(True for pattern in WEIGHT_FILES for _ in Path(path).glob(pattern))
        load = load_model if has_weights else random_model
        self._model = load(path, getattr(torch, self._type_name(path)), device)
        self._keeps_last = "logits_to_keep" in inspect.signature(self._model.forward).parameters
        self._step = self._compiled() if self._variant in COMPILED else self._model
        if self._variant == "generate":
            # Not the checkpoint's: its penalties, and tokens that end or pad a text, would change what is measured.
            self._model.generation_config = transformers.GenerationConfig()
        details = self._details(device, has_weights)
        kind = "grow" if self._variant == "eager" else "shared"
        self._info = {**model_info(self._model), "cache": kind, "threads": threads or 0, "details": details}
        return self._info

    def _type_name(self, path: str) -> str:
        config = json.loads((Path(path) / "config.json").read_text())
        if self._dtype != "auto":
            return self._dtype
        text = config.get("text_config") or {}
        own = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
        return own if own in ("float16", "bfloat16") else "float16"

    def _compiled(self) -> Callable[..., Any]:
        import torch

        settings: Any = torch._dynamo.config
        name = "recompile_limit" if hasattr(settings, "recompile_limit") else "cache_size_limit"
        setattr(settings, name, max(SHAPES_LIMIT, getattr(settings, name)))
        compiled: Callable[..., Any] = torch.compile(
            self._model.__call__, mode="reduce-overhead", fullgraph=True, dynamic=False
        )
        return compiled

    def _details(self, device: Any, has_weights: bool) -> dict[str, str]:
        import torch
        import transformers

        on_cuda = device.type == "cuda"
        return {
            "transformers": transformers.__version__,
            "torch": torch.__version__,
            "device": str(device),
            "device_name": torch.cuda.get_device_name(device) if on_cuda else "CPU",
            "variant": self._variant,
            "attention": str(self._model.config._attn_implementation),
            "cache": "DynamicCache" if self._variant == "eager" else "StaticCache",
            "weights": "checkpoint" if has_weights else "random: only config.json is there",
        }

    def run(self, request: RunRequest) -> RunTimes:
        """Prefill and decode one case.

        Raises:
            RuntimeError: nothing is open.
            ValueError: the case is longer than the model's context.
        """
        import torch

        if self._model is None:
            raise RuntimeError("run before open")
        if request.capacity > self._info["max_context"]:
            raise ValueError(
                f"prompt {request.prompt} + gen {request.gen} needs {request.capacity} tokens, the model has "
                f"{self._info['max_context']}: use shorter cases"
            )
        device, vocab = self._model.device, self._info["vocab_size"]
        prompt = torch.tensor(request.prompt_tokens(vocab), device=device)
        # [gen - 1, batch, 1]: a step's tokens are a view, which no copy from the host delays.
        steps = torch.tensor(request.step_tokens(vocab), device=device)[:, :, None]
        with torch.no_grad():
            if self._variant == "generate":
                self._warm_generate(request, prompt)
                return self._timed_generate(request, prompt)
            self._warm(request, prompt)
            return self._timed_run(request, prompt, steps)

    def _warm(self, request: RunRequest, prompt: Any) -> None:
        least = COMPILE_WARM_STEPS if self._variant in COMPILED else 0
        cache, place = self._make_room(request, prompt.device)
        if request.warm_steps or least:
            # A static cache allocates itself in its first update, which must not be a compiled one.
            self._prefill(prompt[:, :1], cache)
        for step in range(min(max(request.warm_steps, least), request.capacity - 1)):
            column = step % request.prompt
            self._decode(place(prompt[:, column : column + 1]), cache)
        _synchronize(prompt.device)

    def _make_room(self, request: RunRequest, device: Any) -> tuple[Any, Callable[[Any], Any]]:
        """An empty cache for a case, and what puts a step's tokens, [batch, 1], where the step reads them.

        A growing cache is made anew. A static one is kept for its shape, as are the tokens that the compiled step
        reads: addresses and strides are compiled in.
        """
        import torch
        from transformers import DynamicCache, StaticCache

        if self._variant == "eager":
            return DynamicCache(config=self._model.config), lambda tokens: tokens
        shape = (request.batch, request.capacity)
        if shape not in self._static:
            tokens = torch.zeros((request.batch, 1), dtype=torch.long, device=device)
            torch._dynamo.mark_static_address(tokens)
            self._static[shape] = StaticCache(config=self._model.config, max_cache_len=request.capacity), tokens
        cache, tokens = self._static[shape]
        cache.reset()
        return cache, tokens.copy_

    def _timed_run(self, request: RunRequest, prompt: Any, steps: Any) -> RunTimes:
        import torch

        cache, place = self._make_room(request, prompt.device)
        found = torch.empty(steps.shape[:2], dtype=torch.long, device=prompt.device)
        ticks = make_ticks(prompt.device)
        _synchronize(prompt.device)
        begin = time.perf_counter()
        token = self._prefill(prompt, cache)
        token.tolist()
        first = time.perf_counter() - begin
        window = time.time()
        ticks.tick()
        for index in range(len(steps)):
            given = token[:, None] if self._variant == "loop" else steps[index]
            token = found[index]
            self._decode(place(given), cache, token)
            ticks.tick()
            if self._variant == "loop":
                token.tolist()
        found.tolist()
        return RunTimes(first, ticks.gaps(), decode_window=(window, time.time()))

    def _warm_generate(self, request: RunRequest, prompt: Any) -> None:
        """Have ``generate`` compile for a case and record its graph, as in a process that runs this case alone.

        Another shape than the last one's starts over: it would get the longest cache so far and dynamic shapes.
        """
        import torch

        shape = (request.batch, request.prompt, request.gen)
        gen = min(request.gen, 1 + max(request.warm_steps, COMPILE_WARM_STEPS))
        if shape != self._generated:
            torch.compiler.reset()
            vars(self._model).pop("_previous_max_cache_length", None)
            gen = request.gen  # all steps: where a sliding window fills up, there is one more version to compile
            self._generated = shape
        self._generate(prompt, gen, StreamTicks())
        gc.collect()  # a cache that lived on would put the next one elsewhere, and the graph be recorded again

    def _timed_generate(self, request: RunRequest, prompt: Any) -> RunTimes:
        ticks, window = StreamTicks(), time.time()
        ticks.tick()
        self._generate(prompt, request.gen, ticks)
        first, *steps = ticks.gaps()
        if len(steps) != request.gen - 1:
            raise RuntimeError(f"generate made {len(steps) + 1} tokens where {request.gen} were asked for")
        return RunTimes(first, tuple(steps), decode_window=(window + first, window + first + sum(steps)))

    def _generate(self, prompt: Any, gen: int, ticks: StreamTicks) -> None:
        """``gen`` tokens after the prompt, [batch, prompt]."""
        options = {"do_sample": False, "use_cache": True, "cache_implementation": "static", "streamer": ticks}
        self._model.generate(prompt, min_new_tokens=gen, max_new_tokens=gen, **options)

    def _prefill(self, tokens: Any, cache: Any) -> Any:
        """The most likely token after each row, [batch], on the device."""
        return self._last_logits(self._model, tokens, cache).argmax(dim=-1)

    def _decode(self, tokens: Any, cache: Any, found: Any = None) -> None:
        """One step; the most likely tokens go into ``found``, [batch]."""
        import torch

        if self._variant in COMPILED:
            torch.compiler.cudagraph_mark_step_begin()
        torch.argmax(self._last_logits(self._step, tokens, cache), dim=-1, out=found)

    def _last_logits(self, function: Callable[..., Any], tokens: Any, cache: Any) -> Any:
        """Logits after each row's last token, [batch, vocab]."""
        options = {"logits_to_keep": 1} if self._keeps_last else {}
        return function(input_ids=tokens, past_key_values=cache, use_cache=True, **options).logits[:, -1]

    def logits(self, tokens: Sequence[int], first: int, file: str) -> None:
        """Write the logits after each token from ``first`` to the last but one of a text of its own, one call.

        Raises:
            RuntimeError: nothing is open.
        """
        import torch

        if self._model is None:
            raise RuntimeError("logits before open")
        ids = torch.tensor([list(tokens[:-1])], device=self._model.device)
        options = {"logits_to_keep": ids.shape[1] - first} if self._keeps_last else {}
        with torch.no_grad():
            rows = self._model(input_ids=ids, use_cache=False, **options).logits[0, first - ids.shape[1] :]
        with Path(file).open("wb") as output:
            output.write(rows.float().cpu().contiguous().numpy())

    def device_bytes(self) -> int | None:
        """Most bytes that torch's allocator held on the device; None on a CPU."""
        import torch

        return int(torch.cuda.max_memory_reserved()) if torch.cuda.is_available() else None

    def close(self) -> None:
        """Drop the model and the caches."""
        self._model, self._step, self._generated = None, _no_model, None
        self._static.clear()


def _no_model(**_: Any) -> Any:
    raise RuntimeError("run before open")


def load_model(path: str, dtype: Any, device: Any) -> Any:
    """The checkpoint's weights in ``dtype`` on ``device``."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(path, dtype=dtype).to(device).eval()


def random_model(path: str, dtype: Any, device: Any) -> Any:
    """A model of the directory's geometry, made on ``device``: matrices normal, norms ones, biases zeros."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    torch.manual_seed(0)
    with torch.device(device):
        model = AutoModelForCausalLM.from_config(config, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1:
                parameter.normal_(std=RANDOM_STD)
            else:
                parameter.fill_(0.0 if name.endswith("bias") else 1.0)
    return model.eval()


def model_info(model: Any) -> dict[str, Any]:
    """The fields of :class:`~llmc.runtimes.session.engine.EngineInfo` that the model decides."""
    config = model.config.get_text_config()
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads
    layers = config.num_hidden_layers
    return {
        "runtime": "transformers",
        "vocab_size": config.vocab_size,
        "num_layers": layers,
        "max_context": config.max_position_embeddings,
        "logits": "last",
        "cache_bytes_per_token": layers * 2 * kv_heads * width * model.dtype.itemsize,
        "weight_bytes": weight_bytes(model, config),
        "precision": DTYPES[str(model.dtype).replace("torch.", "")],
    }


def weight_bytes(model: Any, config: Any) -> int:
    """Bytes of weights that a decode step reads; 0 (not known) for a mixture of experts, which reads some of them.

    The embedding, of which a step reads a row for each token, is left out unless the output projection is tied to it.
    """
    if any(getattr(config, name, None) for name in EXPERT_COUNTS):
        return 0
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    tied = head is not None and head.weight is embedding.weight
    total = sum(parameter.nbytes for parameter in model.parameters())
    return int(total if tied else total - embedding.weight.nbytes)


def _synchronize(device: Any) -> None:
    import torch

    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    serve(TransformersTarget(*sys.argv[1:]))
