"""Rows of a GGUF file's tensors: where they lie, and which rows of the file a row of the result comes from."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import UnsupportedModelError
from llmc.compiler.checkpoint import gguf_rows, gguf_weights
from llmc.compiler.checkpoint.gguf_header import read_gguf_header
from llmc.compiler.checkpoint.gguf_rows import read_gguf_rows
from llmc.compiler.checkpoint.gguf_weights import GgufWeights

from .conftest import GgufWriter, tiny_llama_tensors, tiny_metadata

Array = np.ndarray[Any, Any]
QUERIES = "model.layers.0.self_attn.q_proj.weight"
RANGES = [(0, None), (0, 1), (1, 4), (2, 3), (4, None), (3, 3), (-2, None), (0, 99)]


def q8_blocks(*shape: int) -> tuple[Array, Array]:
    """Blocks of 32 small integers and a scale of 0.5, as bytes [.., 34 x blocks], and the values."""
    *outer, columns = shape
    numbers = np.arange(np.prod(shape)).reshape(-1, 32) % 100
    scales = np.full((len(numbers), 1), 0.5, np.float16).view(np.uint8)
    raw = np.concatenate([scales, numbers.astype(np.uint8)], axis=1)
    return raw.reshape(*outer, columns // 32 * 34), (numbers * 0.5).astype(np.float32).reshape(shape)


@pytest.mark.parametrize("shape", [(5, 64), (5, 3, 64), (5, 2, 3, 32)], ids=str)
@pytest.mark.parametrize("chunk", [1, 200, 1 << 20], ids=["a row", "few rows", "all rows"])
def test_rows_of_a_quantized_tensor(
    write_gguf: GgufWriter, tmp_path: Path, shape: tuple[int, ...], chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Matrices and stacks of them, however many rows are dequantized at a time."""
    monkeypatch.setattr(gguf_rows, "_CHUNK_BYTES", chunk)
    raw, values = q8_blocks(*shape)
    path = write_gguf(tmp_path / "x.gguf", tensors={"before": np.ones(7, np.float32), "w": (raw, "Q8_0")})
    tensor = read_gguf_header(path).tensors[1]
    assert tensor.shape == shape
    for start, stop in RANGES:
        read = read_gguf_rows(tensor, start, stop)
        np.testing.assert_array_equal(read, values[start:stop], strict=True)


@pytest.mark.parametrize(("start", "stop"), [(0, None), (5, 40), (31, 33), (64, None), (-3, None), (40, 5)])
def test_rows_of_a_quantized_vector_are_its_values(
    write_gguf: GgufWriter, tmp_path: Path, start: int, stop: int | None
) -> None:
    raw, values = q8_blocks(96)
    path = write_gguf(tmp_path / "x.gguf", tensors={"w": (raw, "Q8_0")})
    (tensor,) = read_gguf_header(path).tensors
    np.testing.assert_array_equal(read_gguf_rows(tensor, start, stop), values[start:stop], strict=True)


def processed(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """Let transformers' processor of llamas do ``change`` to the queries of the first layer."""
    from transformers import modeling_gguf_pytorch_utils as loader

    class Processor(loader.TensorProcessor):  # type: ignore[misc]
        def process(self, weights: Any, name: str, **_: Any) -> Any:
            return loader.GGUFTensor(change(weights) if name == "blk.0.attn_q.weight" else weights, name, {})

    monkeypatch.setitem(loader.TENSOR_PROCESSORS, "llama", Processor)


CHANGES = {
    "copied": lambda w: w,
    "copied in another order": lambda w: w[::-1],
    "neighbours exchanged": lambda w: w.reshape(-1, 2, w.shape[-1])[:, ::-1].reshape(w.shape),
    "another shape": lambda w: w[:, None],
    "another shape and order": lambda w: w[::-1][:, None],
    "another number": lambda w: w + 1,
    "twice in half as many": lambda w: np.concatenate([w[: len(w) // 2]] * 2),
    "fewer": lambda w: w[:20],
    "two rows mixed": lambda w: w.reshape(2, -1, w.shape[-1]).transpose(1, 0, 2).reshape(len(w) // 2, 2, -1),
    "with the row before": lambda w: np.stack([w, np.roll(w, 1, axis=0)], axis=1),
    "columns": lambda w: w.T,
}


@pytest.mark.parametrize("name", list(CHANGES))
def test_rows_are_those_of_the_whole_tensor_whatever_is_done_to_it(
    tiny_llama_gguf: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Copies are read by rows; what is computed, too, where each row comes from the row of its number."""
    processed(monkeypatch, CHANGES[name])
    weights = GgufWeights(tiny_llama_gguf)
    whole = CHANGES[name](tiny_llama_tensors()["blk.0.attn_q.weight"])
    assert weights.tensors()[QUERIES].shape == whole.shape
    for start, stop in [*RANGES, (7, 11)]:
        np.testing.assert_array_equal(weights.read(QUERIES, start, stop), whole[start:stop])


def read_rows(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """The rows of the file that are asked for from now on."""
    seen: list[tuple[int, int | None]] = []

    def record(tensor: Any, start: int = 0, stop: int | None = None) -> Any:
        seen.append((start, stop))
        return read_gguf_rows(tensor, start, stop)

    monkeypatch.setattr(gguf_weights, "read_gguf_rows", record)
    return seen


@pytest.mark.parametrize(
    ("name", "rows"),
    [
        ("copied", (7, 11)),
        ("copied in another order", (21, 25)),
        ("another shape", (7, 11)),
        ("another shape and order", (0, None)),
        ("columns", (0, None)),
    ],
)
def test_only_the_rows_that_are_needed_are_read(
    tiny_llama_gguf: Path, monkeypatch: pytest.MonkeyPatch, name: str, rows: tuple[int, int | None]
) -> None:
    processed(monkeypatch, CHANGES[name])
    weights, seen = GgufWeights(tiny_llama_gguf), read_rows(monkeypatch)
    weights.read(QUERIES, 7, 11)
    assert seen == [rows]


def test_an_architecture_that_transformers_does_not_read(write_gguf: GgufWriter, tmp_path: Path) -> None:
    """What its converter did to the tensors is not known; a type that is known tells it."""
    path = write_gguf(tmp_path / "x.gguf", "wobble", {"general.name": "x"}, {"a": np.zeros((2, 3), np.float32)})
    config: Any = SimpleNamespace(model_type="wobble", to_dict=dict)
    with pytest.raises(UnsupportedModelError, match=r"cannot read the weights of the GGUF architecture wobble"):
        GgufWeights(path, config)


def test_tensors_that_the_model_has_no_place_for_are_told(write_gguf: GgufWriter, tmp_path: Path) -> None:
    """Whoever refuses them asks for all, and for those that are used."""
    tensors = tiny_llama_tensors() | {"blk.0.other.weight": np.ones(4, np.float32)}
    path = write_gguf(tmp_path / "tiny.gguf", "llama", tiny_metadata("llama"), tensors)
    weights = GgufWeights(path)
    assert len(weights.tensors()) == len(tensors) - 1
    assert weights.stored().keys() - weights.used() == {"blk.0.other.weight"}
