"""The loops behind a machine's ceilings do what they count: their results are those of the arithmetic."""

from __future__ import annotations

import ctypes
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.runtimes.kernels import ceilings
from llmc.runtimes.kernels.ceilings import CeilingKernels, ceiling_kernels
from llmc.runtimes.kernels.library import KernelsUnavailable, Variant

from .operators import library

STEP = 32


@pytest.fixture(scope="module")
def kernels(variant: Variant) -> CeilingKernels:
    return ceiling_kernels(variant)


@pytest.mark.usefixtures("kernels")
def test_they_compile_without_a_warning() -> None:
    assert hasattr(ctypes.CDLL(str(library())), "llmc_ceiling_int8")


@pytest.mark.parametrize("place", [0, 63, 64, 1000, 2047])
def test_every_word_is_read(kernels: CeilingKernels, place: int) -> None:
    floats = np.full(2048, 0.5, np.float32)
    floats[place] = 7.25
    assert kernels.read(floats.view(np.uint64)) == 7.25


def test_nothing_behind_the_words_is_read(kernels: CeilingKernels) -> None:
    floats = np.full(512, 0.5, np.float32)
    floats[256:] = 9.0
    assert kernels.read(floats[:256].view(np.uint64)) == 0.5


def results(kernels: CeilingKernels, name: str, rounds: int, first: float, second: float) -> tuple[float, float]:
    sink = (ctypes.c_float * 2)(first, second)
    operations = getattr(kernels.library, f"llmc_ceiling_{name}")(rounds, sink)
    return operations, sink[0]


def test_floats_are_multiplied_and_added_as_often_as_counted(kernels: CeilingKernels) -> None:
    # A factor of 1 and a term of 1: what each lane gains is its multiply-adds.
    before, after = (results(kernels, "float", rounds, 1.0, 1.0) for rounds in (0, 100))
    assert before[0] == 0
    assert after[0] == 2 * (after[1] - before[1])
    assert kernels.float32(100) == after[0]


def test_int8_are_multiplied_and_added_as_often_as_counted(kernels: CeilingKernels) -> None:
    operations, total = results(kernels, "int8", 50, 1.0, 1.0)
    assert operations == 2 * total
    assert operations % (2 * 50 * STEP) == 0
    assert results(kernels, "int8", 50, 3.0, -2.0) == (operations, -6 * total)
    assert kernels.int8(50) == operations


def test_a_library_that_cannot_be_loaded_is_a_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    broken = tmp_path / "broken.so"
    broken.write_bytes(b"no library")
    monkeypatch.setattr(ceilings, "kernel_library", lambda variant: broken)
    with pytest.raises(KernelsUnavailable, match="could not be loaded"):
        ceiling_kernels(replace(library_variant(), needed=()))


def library_variant() -> Any:
    from llmc.runtimes.kernels.library import VARIANTS

    return VARIANTS[-1]
