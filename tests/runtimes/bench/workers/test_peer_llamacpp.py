"""llama.cpp with a stand-in for its library: what is timed, what a context is made for, what is known of a model."""

from __future__ import annotations

import ctypes
import struct
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from llmc.runtimes.bench.workers import peer_llamacpp
from llmc.runtimes.bench.workers.peer_llamacpp import LlamaCppTarget
from llmc.runtimes.bench.workers.protocol import RunRequest

from .gguf_files import TENSORS, gguf

SIZES = {
    "llama_vocab_n_tokens": 50,
    "llama_model_n_embd": 64,
    "llama_model_n_head": 4,
    "llama_model_n_head_kv": 2,
    "llama_model_n_layer": 3,
    "llama_model_n_ctx_train": 128,
    "llama_model_size": 7000,
}


class Native:
    """The library: a token is decoded in a second, and its logits are there three seconds later."""

    def __init__(self) -> None:
        self.now, self.calls, self.contexts, self.status = 100.0, [], [], 0
        self.metadata = {"general.architecture": "llama"}
        self.llama_log_callback = lambda function: function

    def __getattr__(self, name: str) -> Any:
        if not name.startswith("llama_"):
            raise AttributeError(name)
        return lambda *arguments: SIZES.get(name)

    def llama_batch_init(self, tokens: int, _embedding: int, _sequences: int) -> Any:
        fields: dict[str, Any] = {name: [0] * tokens for name in ("token", "pos", "n_seq_id", "logits")}
        return SimpleNamespace(n_tokens=0, seq_id=[[0] for _ in range(tokens)], **fields)

    def llama_decode(self, _context: Any, batch: Any) -> int:
        count = batch.n_tokens
        rows = [each[0] for each in batch.seq_id[:count]]
        asked = [bool(each) for each in batch.logits[:count]]
        self.calls.append((batch.token[:count], batch.pos[:count], rows, asked))
        self.now += count
        return self.status

    def llama_synchronize(self, _context: Any) -> None:
        self.now += 3

    def llama_memory_clear(self, _memory: Any, _data: Any) -> None:
        self.now += 1000
        self.calls.append("clear")

    def llama_context_default_params(self) -> Any:
        return SimpleNamespace(n_batch=8, n_threads=4, n_threads_batch=4, flash_attn_type=-1)

    def llama_model_default_params(self) -> Any:
        return SimpleNamespace(n_gpu_layers=9)

    def llama_model_load_from_file(self, path: bytes, parameters: Any) -> Any:
        assert parameters.n_gpu_layers == 0
        return object()

    def llama_init_from_model(self, _model: Any, parameters: Any) -> Any:
        self.contexts.append(parameters)
        return object()

    def llama_print_system_info(self) -> bytes:
        return b"AVX2 = 1 "

    def llama_model_meta_val_str(self, _model: Any, key: bytes, buffer: Any, _size: int) -> int:
        text = self.metadata.get(key.decode())
        buffer.value = (text or "").encode()
        return -1 if text is None else len(text)


@pytest.fixture
def native(monkeypatch: pytest.MonkeyPatch) -> Native:
    made: Any = Native()
    package = ModuleType("llama_cpp")
    package.__version__ = "0.3.9"  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "llama_cpp", package)
    monkeypatch.setitem(sys.modules, "llama_cpp.llama_cpp", made)
    monkeypatch.setattr(peer_llamacpp, "time", SimpleNamespace(perf_counter=lambda: made.now, time=lambda: made.now))
    result: Native = made
    return result


def opened(native: Native, flash_attention: str = "on") -> LlamaCppTarget:
    target = LlamaCppTarget(flash_attention)
    target._model, target._threads = object(), 2
    return target


def test_what_is_timed_is_decoding_until_it_is_done(native: Native) -> None:
    times = opened(native).run(RunRequest(prompt=5, gen=3, batch=2, warm_steps=2))
    assert times.first_token_s == 10 + 3
    assert times.step_s == (2 + 3, 2 + 3)
    assert times.decode_window is not None
    assert times.decode_window[1] - times.decode_window[0] >= 10


def test_tokens_places_and_logits(native: Native) -> None:
    """The warm-up goes through the prompt's columns; the cache is empty before it and after it."""
    request = RunRequest(prompt=2, gen=3, batch=2, seed=4, warm_steps=3)
    opened(native).run(request)
    prompt, steps = request.prompt_tokens(50), request.step_tokens(50)
    both = ([0, 1], [True, True])
    warm = [([row[step % 2] for row in prompt], [step, step], *both) for step in range(3)]
    prefill = ([*prompt[0], *prompt[1]], [0, 1, 0, 1], [0, 0, 1, 1], [False, True, False, True])
    decoded = [(tokens, [2 + step] * 2, *both) for step, tokens in enumerate(steps)]
    assert native.calls == ["clear", *warm, "clear", prefill, *decoded]


def test_a_context_has_the_shape_of_the_case(native: Native) -> None:
    target = opened(native)
    for gen, batch in ((4, 3), (4, 3), (5, 3), (4, 2)):
        target.run(RunRequest(prompt=5, gen=gen, batch=batch))
    first, longer, narrower = native.contexts
    assert (first.n_ctx, first.n_batch, first.n_seq_max) == (24, 24, 3)
    assert (first.n_threads, first.n_threads_batch, first.flash_attn_type) == (2, 2, 1)
    assert (longer.n_ctx, narrower.n_ctx, narrower.n_seq_max) == (27, 16, 2)


@pytest.mark.parametrize(("variant", "number"), [("auto", -1), ("off", 0), ("on", 1)])
def test_flash_attention(native: Native, variant: str, number: int) -> None:
    opened(native, variant).run(RunRequest(prompt=1, gen=2, batch=1))
    assert native.contexts[0].flash_attn_type == number


@pytest.mark.parametrize("status", [1, -1])
def test_a_step_that_failed_has_no_time(native: Native, status: int) -> None:
    native.status = status
    with pytest.raises(RuntimeError, match=f"llama_decode failed .status {status}."):
        opened(native).run(RunRequest(prompt=3, gen=3, batch=1))


def test_nothing_runs_before_it_is_open(native: Native) -> None:
    with pytest.raises(RuntimeError, match="run before open"):
        LlamaCppTarget().run(RunRequest(prompt=3, gen=3, batch=1))


@pytest.mark.parametrize(
    ("lengths", "width"),
    [({}, 16 + 16), ({"key": "24"}, 24 + 16), ({"key": "24", "value": "10"}, 24 + 10)],
)
def test_info(native: Native, tmp_path: Path, lengths: dict[str, str], width: int) -> None:
    """Keys and values of all layers in float16, by the file's own widths where it says them."""
    native.metadata |= {f"llama.attention.{name}_length": size for name, size in lengths.items()}
    info = LlamaCppTarget("off").open(str(gguf(tmp_path / "m.gguf", TENSORS)), None)
    assert info["cache_bytes_per_token"] == 3 * 2 * width * 2
    assert (info["threads"], info["precision"], info["weight_bytes"]) == (4, "Q4_K_M", 7000)
    assert (info["vocab_size"], info["num_layers"], info["max_context"]) == (50, 3, 128)
    assert (info["details"]["flash_attention"], info["details"]["system"]) == ("off", "AVX2 = 1")
    assert LlamaCppTarget().open(str(tmp_path / "m.gguf"), 9)["threads"] == 9


class Options(ctypes.Structure):
    """Of the library's quantizer; ctypes passes it by reference."""

    _fields_: ClassVar = [("ftype", ctypes.c_int), ("allow_requantize", ctypes.c_bool), ("pure", ctypes.c_bool)]


def test_a_file_is_run_as_it_is(native: Native, tmp_path: Path) -> None:
    source, cache = gguf(tmp_path / "model.gguf", TENSORS), tmp_path / "cache"
    prepared = LlamaCppTarget("on").prepare(str(source), str(cache))
    assert prepared.path == str(source)
    assert prepared.details["ftype"] == "Q4_K_M"
    assert not cache.exists()


def test_a_file_of_another_type_is_made_once_and_never_half(native: Native, tmp_path: Path) -> None:
    source, made, statuses = tmp_path / "model.gguf", list[tuple[bytes, int]](), iter([5, 0])
    source.write_bytes(b"x" * 9)

    def quantize(_source: bytes, target: bytes, options: Any) -> int:
        gguf(Path(target.decode()), TENSORS)
        made.append((target, options._obj.ftype))
        return next(statuses)

    native.LLAMA_FTYPE_MOSTLY_Q5_0 = 8
    native.llama_model_quantize_default_params = Options
    native.llama_model_quantize = quantize
    target, cache = LlamaCppTarget("auto", "Q5_0"), tmp_path / "cache"
    with pytest.raises(RuntimeError, match=r"refused .*model\.gguf .status 5."):
        target.prepare(str(source), str(cache))
    assert list(cache.iterdir()) == []
    (path,) = {target.prepare(str(source), str(cache)).path for _ in range(2)}
    assert [str(path) for path in cache.iterdir()] == [path]
    assert path.endswith(".Q5_0.gguf")
    assert [kind for _, kind in made] == [8, 8]
    with pytest.raises(RuntimeError, match="makes no files of type Q9"):
        LlamaCppTarget("auto", "Q9").prepare(str(source), str(cache))


def test_logits_are_those_of_the_positions_asked_for(native: Native, tmp_path: Path) -> None:
    """From an empty cache, as floats in a file; the last token's are not asked for."""
    values = [float(number) for number in range(3 * 50)]
    kept = (ctypes.c_float * 150)(*values)
    floats: Any = native
    floats.llama_get_logits = lambda _context: ctypes.cast(kept, ctypes.POINTER(ctypes.c_float))
    target = opened(native)
    target.logits([7, 8, 9, 10, 11, 12], 2, str(tmp_path / "logits"))
    wanted = [False, False, True, True, True, False]
    assert native.calls == ["clear", ([7, 8, 9, 10, 11, 12], [0, 1, 2, 3, 4, 5], [0] * 6, wanted)]
    assert list(struct.unpack("<150f", (tmp_path / "logits").read_bytes())) == values
    native.status = 1
    with pytest.raises(RuntimeError, match="llama_decode failed"):
        target.logits([7, 8, 9], 1, str(tmp_path / "logits"))
    target._model = None
    with pytest.raises(RuntimeError, match="before open"):
        target.logits([7, 8, 9], 1, str(tmp_path / "logits"))
