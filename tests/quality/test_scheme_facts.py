"""What is known of an engine and of a GGUF file without reading a weight."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import LlmcError, UsageError
from llmc.compiler.base.options import CompileOptions, OptimizeOptions
from llmc.compiler.driver.driver import compile_model

from ..compiler.tiny_text_model import text_model
from ..shared import Shared
from .scheme_facts import facts_of

MATRIX = "quantize.imatrix.file"


def write(path: Path, file_type: int = 15, *, matrix: bool = False) -> Path:
    """A table in Q8_0, a layer in Q4_0, a norm in float."""
    gguf: Any = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_file_type(file_type)
    writer.add_array("tokenizer.ggml.tokens", ["a"] * 1000)
    if matrix:
        writer.add_string(MATRIX, "m")
    for name, rows, kind in (("token_embd", 16, "Q8_0"), ("blk.0.ffn_up", 8, "Q4_0")):
        values = gguf.quantize(np.ones((rows, 64), np.float32), gguf.GGMLQuantizationType[kind])
        writer.add_tensor(f"{name}.weight", values, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.add_tensor("output_norm.weight", np.ones(64, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file(tmp_path: Path) -> None:
    """Bits are those of matrices; bytes those of the file."""
    found = facts_of(write(tmp_path / "m.gguf"))
    assert (found.name, found.scheme, found.ours) == ("llama.cpp Q4_K_M", "Q4_K_M", False)
    assert (found.path, found.bytes) == (str(tmp_path / "m.gguf"), (tmp_path / "m.gguf").stat().st_size)
    assert found.weights == 24 * 64
    assert found.linear_bits == 4.5
    assert found.bits == pytest.approx((16 * 8.5 + 8 * 4.5) / 24)


def test_an_importance_matrix_is_in_the_name_and_not_in_the_scheme(tmp_path: Path) -> None:
    found = facts_of(write(tmp_path / "m.gguf", 30, matrix=True))
    assert (found.name, found.scheme) == ("llama.cpp IQ4_XS, importance matrix", "IQ4_XS")


def test_a_file_that_was_written_anew_has_another_digest(tmp_path: Path) -> None:
    path = write(tmp_path / "m.gguf")
    first = facts_of(path)
    assert facts_of(path) == first
    os.utime(path, ns=(0, 7))
    assert facts_of(path).digest != first.digest


def test_an_engine(shared: Shared) -> None:
    def engine(precision: str) -> Path:
        options = CompileOptions(optimize=OptimizeOptions(precision=precision, effort="round"))
        return shared.make(
            "tiny-evaluated",
            lambda path: compile_model(str(text_model(shared)), path, options),
            precision=precision,
        )

    found, wider = facts_of(engine("int4")), facts_of(engine("int8"))
    directory = engine("int4").resolve()
    assert (found.name, found.scheme, found.ours) == (f"llmc {directory.name}", directory.name, True)
    assert (found.path, found.bytes) == (str(directory), (directory / "model.onnx.data").stat().st_size)
    assert 4 < found.linear_bits < wider.linear_bits
    assert found.weights == wider.weights
    assert found.bits < wider.bits
    assert found.digest != wider.digest


def test_what_is_neither_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.gguf does not exist"):
        facts_of(tmp_path / "none.gguf")
    with pytest.raises(LlmcError):
        facts_of(tmp_path)
    (tmp_path / "m.gguf").write_bytes(b"nonsense" * 9)
    with pytest.raises(LlmcError, match="not a GGUF file"):
        facts_of(tmp_path / "m.gguf")
