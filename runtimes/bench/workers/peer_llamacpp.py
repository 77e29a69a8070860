"""llama.cpp as a peer, through the low-level interface of ``llama-cpp-python``.

In: a GGUF file, requests on stdin (protocol.py). Out: answers on stdout. It runs in the interpreter that has
``llama-cpp-python``, which needs nothing of llmc's: this file imports protocol.py and the standard library.

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
import struct
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from llmc.runtimes.bench.workers.protocol import Prepared, RunRequest, RunTimes, serve

FLASH_ATTENTION = {"auto": -1, "off": 0, "on": 1}
F16_BYTES = 2
LOG_LEVEL_ERROR = 4

# ggml's tensor types by number (ggml.h), of those that GGUF files carry today.
TENSOR_TYPES = {
    0: "F32", 1: "F16", 2: "Q4_0", 3: "Q4_1", 6: "Q5_0", 7: "Q5_1", 8: "Q8_0", 10: "Q2_K", 11: "Q3_K", 12: "Q4_K",
    13: "Q5_K", 14: "Q6_K", 15: "Q8_K", 30: "BF16",
}  # fmt: skip
SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
STRING_TYPE, ARRAY_TYPE = 8, 9


class LlamaCppTarget:
    """Measures llama.cpp on the CPU."""

    def __init__(self, flash_attention: str = "auto") -> None:
        """Load the library; ``flash_attention`` is one of :data:`FLASH_ATTENTION`, ``auto`` llama.cpp's default."""
        native: Any = importlib.import_module("llama_cpp.llama_cpp")
        self._native = native
        self._log = native.llama_log_callback(_log_errors)  # kept: the library calls it as long as it lives
        native.llama_log_set(self._log, ctypes.c_void_p(0))
        native.llama_backend_init()
        self._model: Any = None
        self._context: Any = None
        self._shape: tuple[int, int] = (0, 0)
        self._flash_attention = flash_attention
        self._threads = 0

    def prepare(self, source: str, cache: str) -> Prepared:
        """Make a Q4_0 file from ``source`` with ``llama_model_quantize`` (requantizing allowed, not ``pure``).

        Raises:
            RuntimeError: llama.cpp refused.
        """
        status = Path(source).stat()
        output = Path(cache) / f"{Path(source).stem}.{status.st_size:x}-{status.st_mtime_ns:x}.Q4_0.gguf"
        if not output.is_file():
            output.parent.mkdir(parents=True, exist_ok=True)
            temporary = output.with_suffix(f".{os.getpid()}.tmp")
            parameters = self._native.llama_model_quantize_default_params()
            parameters.ftype = self._native.LLAMA_FTYPE_MOSTLY_Q4_0
            parameters.allow_requantize = True
            parameters.pure = False
            refused = self._native.llama_model_quantize(
                os.fsencode(source), os.fsencode(temporary), ctypes.byref(parameters)
            )
            if refused:
                temporary.unlink(missing_ok=True)
                raise RuntimeError(f"llama_model_quantize refused {source} (status {refused})")
            temporary.replace(output)
        return Prepared(str(output), {"ftype": "Q4_0", "pure": False, **describe_tensors(output)})

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
            **describe_tensors(Path(path)),
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
            "precision": details["largest_type"],
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
            gaps = [
                self._decode(batch, [[token] for token in tokens], request.prompt + step)
                for step, tokens in enumerate(steps)
            ]
        finally:
            native.llama_batch_free(batch)
        return RunTimes(first, tuple(gaps))

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


def describe_tensors(path: Path) -> dict[str, Any]:
    """Types of a GGUF file's tensors: the output projection's, the one with the most elements, elements by type."""
    by_type: dict[str, int] = {}
    types: dict[str, str] = {}
    for name, kind, elements in read_tensor_infos(path):
        types[name] = kind
        by_type[kind] = by_type.get(kind, 0) + elements
    embedding = types.get("token_embd.weight", "unknown")
    return {
        "output_tensor_type": types.get("output.weight", f"{embedding} (tied to the token embedding)"),
        "token_embedding_type": embedding,
        "largest_type": max(by_type, key=lambda kind: by_type[kind]) if by_type else "unknown",
        "elements_by_type": by_type,
    }


def read_tensor_infos(path: Path) -> Iterator[tuple[str, str, int]]:
    """(name, type's name, elements) of every tensor, from a GGUF file's header (versions 2 and 3, little-endian).

    Raises:
        ValueError: not such a file.
    """
    with path.open("rb") as file:
        if file.read(4) != b"GGUF" or _scalar(file, "I") not in (2, 3):
            raise ValueError(f"{path} is not a GGUF file of version 2 or 3")
        tensors, pairs = _scalar(file, "Q"), _scalar(file, "Q")
        for _ in range(pairs):
            _string(file)
            _skip_value(file, _scalar(file, "I"))
        for _ in range(tensors):
            name, elements = _string(file), 1
            for _ in range(_scalar(file, "I")):
                elements *= _scalar(file, "Q")
            kind = _scalar(file, "I")
            _scalar(file, "Q")
            yield name, TENSOR_TYPES.get(kind, f"type {kind}"), elements


def _scalar(file: BinaryIO, code: str) -> int:
    (value,) = struct.unpack("<" + code, file.read(struct.calcsize("<" + code)))
    return int(value)


def _string(file: BinaryIO) -> str:
    return file.read(_scalar(file, "Q")).decode(errors="replace")


def _skip_value(file: BinaryIO, kind: int) -> None:
    if kind == STRING_TYPE:
        _string(file)
    elif kind == ARRAY_TYPE:
        element, count = _scalar(file, "I"), _scalar(file, "Q")
        for _ in range(count):
            _skip_value(file, element)
    else:
        file.seek(struct.calcsize("<" + SCALAR_FORMATS[kind]), os.SEEK_CUR)


if __name__ == "__main__":
    serve(LlamaCppTarget(*sys.argv[1:]))
