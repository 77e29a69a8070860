"""llama.cpp as a peer, through the low-level interface of ``llama-cpp-python``.

In: a GGUF file, requests on stdin (protocol.py). Out: answers on stdout. It runs in the interpreter that has
``llama-cpp-python``, which needs nothing of llmc's: this file imports protocol.py, gguf_header.py and the standard
library. The file is run as it is, unless the worker was started with a type to quantize it to.

What is timed is what ``llama-bench`` times: ``llama_decode`` and ``llama_synchronize``, on random tokens, the KV
cache cleared before; reading logits and sampling are left out. A prompt is one ``llama_decode`` (cut into pieces of
``n_ubatch`` = 512 tokens inside), with logits for its last position only; a decode step is one token per row.
``tg`` is therefore llama-bench's ``tg`` at the depth of the prompt (its ``-d``). Rows of a batch are sequences of one
context, as in ``llama-batched-bench``.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc.runtimes.bench.workers.gguf_header import read_gguf
from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
F16_BYTES = 2
LOG_LEVEL_ERROR = 4


class LlamaCppTarget:
    """Measures llama.cpp on the CPU."""

    def __init__(self, flash_attention: str = "auto", quantize: str | None = None) -> None:
        """Load the library.

        Args:
            flash_attention: One of :data:`FLASH_ATTENTION`; ``auto`` is llama.cpp's default.
            quantize: Type that ``prepare`` makes of a file, as ``Q4_0``; None: it is taken as it is.
        """
        native: Any = importlib.import_module("llama_cpp.llama_cpp")
        self._native = native
        self._log = native.llama_log_callback(_log_errors)  # kept: the library calls it as long as it lives
        native.llama_log_set(self._log, ctypes.c_void_p(0))
        native.llama_backend_init()
        self._model: Any = None
        self._context: Any = None
        self._shape: tuple[int, int] = (0, 0)
        self._flash_attention, self._quantize = flash_attention, quantize
        self._threads = 0

    def prepare(self, source: str, cache: str) -> Prepared:
        """Name the file's type; where another was asked for, make such a file with ``llama_model_quantize``.

        Requantizing is allowed, and the mixture of types is llama.cpp's (not ``pure``).

        Raises:
            RuntimeError: llama.cpp refused, or the installed release does not know the type.
            ValueError: no GGUF file.
        """
        if self._quantize is None:
            return Prepared(source, read_gguf(Path(source)).describe())
        name = f"LLAMA_FTYPE_MOSTLY_{self._quantize}"
        if not hasattr(self._native, name):
            raise RuntimeError(f"the installed llama-cpp-python makes no files of type {self._quantize}")
        status = Path(source).stat()
        stem = f"{Path(source).stem}.{status.st_size:x}-{status.st_mtime_ns:x}"
        output = Path(cache) / f"{stem}.{self._quantize}.gguf"
        if not output.is_file():
            output.parent.mkdir(parents=True, exist_ok=True)
            temporary = output.with_suffix(f".{os.getpid()}.tmp")
            parameters = self._native.llama_model_quantize_default_params()
            parameters.ftype = getattr(self._native, name)
            parameters.allow_requantize = True
            parameters.pure = False
            refused = self._native.llama_model_quantize(
                os.fsencode(source), os.fsencode(temporary), ctypes.byref(parameters)
            )
            if refused:
                temporary.unlink(missing_ok=True)
                raise RuntimeError(f"llama_model_quantize refused {source} (status {refused})")
            temporary.replace(output)
        return Prepared(str(output), {"made_from": source, **read_gguf(output).describe()})

    def open(self, path: str, threads: int | None) -> dict[str, Any]:
        """Load the weights; the context is made with the first run of a shape, where it is not timed.

        Raises:
            RuntimeError: llama.cpp cannot read the file.
        """
        parameters = self._native.llama_model_default_params()
        parameters.n_gpu_layers = 0
        self._model = self._native.llama_model_load_from_file(os.fsencode(path), parameters)
        if not self._model:
            raise RuntimeError(f"llama.cpp cannot load {path}")
        self._threads = threads or self._native.llama_context_default_params().n_threads
        return self._info(path)

    def _info(self, path: str) -> dict[str, Any]:
        native, model = self._native, self._model
        details = {
            "llama_cpp_python": str(sys.modules["llama_cpp"].__version__),
            "system": native.llama_print_system_info().decode().strip(),
            "flash_attention": self._flash_attention,
            "kv_type": "f16",
            **read_gguf(Path(path)).describe(),
        }
        architecture = self._metadata("general.architecture")
        head = native.llama_model_n_embd(model) // native.llama_model_n_head(model)
        widths = [int(self._metadata(f"{architecture}.attention.{name}_length") or head) for name in ("key", "value")]
        layers = native.llama_model_n_layer(model)
        return {
            "runtime": "llama.cpp",
            "vocab_size": native.llama_vocab_n_tokens(native.llama_model_get_vocab(model)),
            "num_layers": layers,
            "max_context": native.llama_model_n_ctx_train(model),
            "logits": "last",
            "cache": "shared",
            "cache_bytes_per_token": layers * native.llama_model_n_head_kv(model) * sum(widths) * F16_BYTES,
            "weight_bytes": native.llama_model_size(model),
            "precision": details["ftype"],
            "threads": self._threads,
            "details": details,
        }

    def _metadata(self, key: str) -> str:
        """A value of the file's metadata as text; empty when it is not there."""
        buffer = ctypes.create_string_buffer(256)
        length = self._native.llama_model_meta_val_str(self._model, key.encode(), buffer, len(buffer))
        return buffer.value.decode() if length >= 0 else ""

    def run(self, request: RunRequest) -> RunTimes:
        """Prefill and decode one case.

        Raises:
            RuntimeError: nothing is open, or ``llama_decode`` failed.
        """
        if self._model is None:
            raise RuntimeError("run before open")
        self._make_context(request.batch, request.capacity)
        native = self._native
        vocab = native.llama_vocab_n_tokens(native.llama_model_get_vocab(self._model))
        prompt = request.prompt_tokens(vocab)
        steps = request.step_tokens(vocab)
        batch = native.llama_batch_init(request.batch * request.prompt, 0, 1)
        try:
            self._clear()
            for step in range(min(request.warm_steps, request.capacity)):
                self._decode(batch, [[row[step % request.prompt]] for row in prompt], step)
            self._clear()
            first = self._decode(batch, prompt, 0)
            begin = time.time()
            gaps = [
                self._decode(batch, [[token] for token in tokens], request.prompt + step)
                for step, tokens in enumerate(steps)
            ]
            window = (begin, time.time())
        finally:
            native.llama_batch_free(batch)
        return RunTimes(first, tuple(gaps), decode_window=window)

    def logits(self, tokens: Sequence[int], first: int, file: str) -> None:
        """Write the logits after each token from ``first`` to the last but one of a text of its own.

        Raises:
            RuntimeError: nothing is open, or ``llama_decode`` failed.
        """
        if self._model is None:
            raise RuntimeError("logits before open")
        self._make_context(1, len(tokens))
        native = self._native
        vocab = native.llama_vocab_n_tokens(native.llama_model_get_vocab(self._model))
        batch = native.llama_batch_init(len(tokens), 0, 1)
        try:
            self._clear()
            self._decode(batch, [tokens], 0, range(first, len(tokens) - 1))
        finally:
            native.llama_batch_free(batch)
        rows = native.llama_get_logits(self._context)
        count = (len(tokens) - 1 - first) * vocab
        values = (ctypes.c_float * count).from_address(ctypes.addressof(rows.contents))
        with Path(file).open("wb") as output:
            output.write(memoryview(values))

    def _make_context(self, rows: int, capacity: int) -> None:
        """A context for exactly this shape, as llama-bench makes one per test; kept while the shape stays."""
        if self._shape == (rows, capacity):
            return
        native = self._native
        if self._context is not None:
            native.llama_free(self._context)
        parameters = native.llama_context_default_params()
        parameters.n_ctx = rows * capacity
        parameters.n_batch = max(parameters.n_batch, rows * capacity)
        parameters.n_seq_max = rows
        parameters.flash_attn_type = FLASH_ATTENTION[self._flash_attention]
        parameters.n_threads = parameters.n_threads_batch = self._threads
        self._context = native.llama_init_from_model(self._model, parameters)
        if not self._context:
            self._context, self._shape = None, (0, 0)
            raise RuntimeError(f"llama.cpp cannot make a context for {rows} rows of {capacity} tokens")
        self._shape = (rows, capacity)

    def _clear(self) -> None:
        self._native.llama_memory_clear(self._native.llama_get_memory(self._context), False)

    def _decode(
        self, batch: Any, rows: Sequence[Sequence[int]], position: int, wanted: Sequence[int] | None = None
    ) -> float:
        """Append ``rows[b]`` to sequence ``b`` at ``position``; logits for each row's last token, or ``wanted``.

        Returns the seconds of ``llama_decode`` and ``llama_synchronize``: filling the batch from Python, which a C++
        caller does for nothing, is not counted.
        """
        index = 0
        for sequence, tokens in enumerate(rows):
            for offset, token in enumerate(tokens):
                batch.token[index] = token
                batch.pos[index] = position + offset
                batch.n_seq_id[index] = 1
                batch.seq_id[index][0] = sequence
                batch.logits[index] = offset == len(tokens) - 1 if wanted is None else offset in wanted
                index += 1
        batch.n_tokens = index
        begin = time.perf_counter()
        status = self._native.llama_decode(self._context, batch)
        self._native.llama_synchronize(self._context)
        seconds = time.perf_counter() - begin
        if status != 0:
            raise RuntimeError(f"llama_decode failed (status {status})")
        return seconds

    def close(self) -> None:
        """Free the context and the model."""
        if self._context is not None:
            self._native.llama_free(self._context)
        if self._model is not None:
            self._native.llama_model_free(self._model)
        self._context = self._model = None


def _log_errors(level: int, text: bytes, _: Any) -> None:
    """Pass llama.cpp's errors on to stderr, drop the rest."""
    if level == LOG_LEVEL_ERROR:
        sys.stderr.write(text.decode(errors="replace"))


if __name__ == "__main__":
    serve(LlamaCppTarget(*sys.argv[1:]))
