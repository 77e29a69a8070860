"""The compiled solvers: the same numbers as torch gives, whatever the scheme, the type of scales and the rows."""

from __future__ import annotations

import logging
import shutil
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch

from llmc.compiler.base.c_library import COMPILERS, NotCompiled
from llmc.compiler.quantization.scheme import SCHEMES, Scheme, scheme_of
from llmc.compiler.quantization.solvers import block_grid, blocks_library, gptq
from llmc.compiler.quantization.solvers.block_grid import BlockGrid, Steps, range_scales
from llmc.compiler.quantization.solvers.blocks_library import OPTIONS, SOURCES, BlocksLibrary
from llmc.compiler.quantization.solvers.gptq import Gptq

ROOT = Path(__file__).parents[4]
COMPILER = next((path for name in COMPILERS if (path := shutil.which(name))), None)
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler is installed")
NAMES = [name for name, row in SCHEMES.items() if row.storage.is_integer()]
TYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16}
ROWS = 150
"""More than a chunk of rows, and no multiple of one."""


def scheme(name: str) -> Scheme:
    found = scheme_of(name, 32)
    assert found is not None
    return found


def weights(kind: Scheme, rows: int = ROWS, seed: int = 0) -> torch.Tensor:
    """[features, rows] with rows of zeros, of one sign, of one value, tiny and large ones."""
    features = kind.block or 48
    block = torch.randn(features, rows, generator=torch.Generator().manual_seed(seed)) * 0.03
    block[:, 3] = 0
    block[:, 70] = block[:, 70].abs()
    block[:, 71] = -block[:, 71].abs()
    block[:, 72] = 0.25
    block[:, 100] *= 1e-7
    block[:, 101] *= 1e3
    return block


def grid(kind: Scheme, block: torch.Tensor, dtype: str = "float32", clippings: int = 13) -> BlockGrid:
    packed = range_scales(block.T.contiguous(), kind) if kind.form == "packed" else None
    if packed is not None:
        # Blocks that are small beside others of their row.
        packed[40:44] *= torch.tensor([3, 100, 300, 1000])[: len(packed[40:44])]
    return BlockGrid(kind, np.dtype(TYPES[dtype]), clippings, packed)


def both(monkeypatch: pytest.MonkeyPatch, function: Any) -> tuple[Any, Any]:
    """Of the library, and of torch."""
    assert blocks_library.blocks_library() is not None
    compiled = function()
    with monkeypatch.context() as patch:
        patch.setattr(block_grid, "blocks_library", lambda: None)
        patch.setattr(gptq, "blocks_library", lambda: None)
        return compiled, function()


@needs_compiler
@pytest.mark.parametrize("dtype", list(TYPES))
@pytest.mark.parametrize("name", NAMES)
def test_grids_are_those_of_torch(name: str, dtype: str, monkeypatch: pytest.MonkeyPatch) -> None:
    block = weights(scheme(name))
    importance = torch.rand(len(block), 1, generator=torch.Generator().manual_seed(1)) + 0.1
    kind = grid(scheme(name), block, dtype)
    compiled, plain = both(monkeypatch, lambda: kind.fit(block, importance))
    assert (compiled.zero is None) == (plain.zero is None)
    # Sums in another order can move a grid to one that errs as little; nothing else may.
    same = torch.isclose(compiled.scale, plain.scale, rtol=1e-5) & torch.isclose(compiled.base, plain.base, rtol=1e-5)
    assert same.float().mean() > 0.97
    small = [3, 40, 41, 42, 43, 100]
    assert torch.allclose(compiled.scale[small], plain.scale[small], rtol=1e-2, atol=0)
    if compiled.zero is not None:
        assert torch.allclose(compiled.zero[same], plain.zero[same], rtol=1e-5, atol=1e-6)
    errors = [kind._error(block, importance, steps) for steps in (compiled, plain)]
    assert torch.allclose(errors[0], errors[1], rtol=1e-3, atol=1e-12)


@needs_compiler
@pytest.mark.parametrize("name", NAMES)
def test_a_row_is_for_itself(name: str) -> None:
    """Whatever lies beside it in a chunk, and wherever it lies in one."""
    block = weights(scheme(name))
    importance = torch.ones(len(block), 1)
    whole = grid(scheme(name), block).fit(block, importance)
    part = block[:, 60:75].contiguous()
    alone = grid(scheme(name), part).fit(part, importance)
    assert torch.equal(alone.scale, whole.scale[60:75])
    assert torch.equal(alone.base, whole.base[60:75])


@needs_compiler
@pytest.mark.parametrize("clippings", [1, 2])
def test_rounding_s_own_grid_is_the_first(clippings: int, monkeypatch: pytest.MonkeyPatch) -> None:
    block = weights(scheme("int4-offset"))
    kind = grid(scheme("int4-offset"), block, clippings=clippings)
    compiled, plain = both(monkeypatch, lambda: kind.fit(block, torch.ones(len(block), 1)))
    assert torch.equal(compiled.scale, plain.scale)
    assert torch.equal(compiled.base, plain.base)


@needs_compiler
@pytest.mark.parametrize("order", ["none", "blocks", "features"])
@pytest.mark.parametrize("name", ["q4@32", "int4@16", "int4-zero@128", "qdq-int8"])
def test_solved_numbers_are_those_of_torch(name: str, order: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = np.random.default_rng(2)
    rows = generator.normal(size=(ROWS, 256)).astype(np.float32)
    x = generator.normal(size=(900, 256)) * np.linspace(2, 0.1, 256)
    moments = torch.from_numpy(x.T @ x)
    kind = scheme_of(name, 256)
    assert kind is not None
    compiled, plain = both(monkeypatch, lambda: Gptq(order=order).prepare(moments, kind).solve(rows))
    assert np.mean(compiled.levels == plain.levels) > 0.99
    assert np.mean(np.isclose(compiled.scales, plain.scales, rtol=1e-5)) > 0.97


@needs_compiler
@pytest.mark.parametrize("steps", [1, 5])
def test_features_make_up_for_those_before_them(steps: int) -> None:
    """By the definition, one number after the other."""
    generator = torch.Generator().manual_seed(3)
    target, weight = (torch.randn(5, 70, generator=generator) for _ in range(2))
    shares = torch.randn(5, 5, generator=generator) * 0.2
    scale, base = torch.rand(steps, 70, generator=generator) * 0.2 + 0.05, torch.full((steps, 70), -0.8)
    scale[0, 7] = 0
    levels, errors = torch.empty(5, 70), torch.empty(5, 70)
    grids = (scale, base) if steps > 1 else (scale[0], base[0])
    library = blocks_library.blocks_library()
    assert library is not None
    library.round_panel(target, weight, shares, grids, (0, 15), (levels, errors))
    for row in range(70):
        for index in range(5):
            own = Steps(scale[index % steps, row], base[index % steps, row], None)
            wanted = target[index, row] + sum(errors[j, row] * shares[j, index] for j in range(index))
            assert levels[index, row] == own.levels(wanted, 0, 15)
            error = weight[index, row] - own.values(levels[index, row])
            assert errors[index, row] == pytest.approx(float(error), abs=1e-6)


@needs_compiler
def test_no_warning() -> None:
    assert COMPILER is not None
    for standard in ("c11", "gnu11"):
        command = [COMPILER, "-Wall", "-Wextra", "-Werror", "-fsyntax-only", f"-std={standard}", "-O2"]
        subprocess.run([*command, *map(str, SOURCES.glob("*.c"))], check=True, timeout=60)


@needs_compiler
def test_float16_without_the_compiler_s_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where it has no such type it is rounded by hand: to nearest even, subnormal and infinite ones included."""
    assert COMPILER is not None
    path = tmp_path / "plain.so"
    command = [COMPILER, *OPTIONS, "-U__FLT16_MANT_DIG__", "-o", str(path), str(SOURCES / "blocks.c"), "-lm"]
    subprocess.run(command, check=True, timeout=60)
    plain = BlocksLibrary(path)
    block = weights(scheme("int4-offset"))
    block[:, 102] *= 3e6
    scales = torch.logspace(-6, 0, ROWS)
    block[:, :] = torch.where(torch.arange(ROWS) % 2 == 0, block * scales, block)
    kind = grid(scheme("int4-offset"), block, "float16")
    importance = torch.ones(len(block), 1)
    expected = kind.fit(block, importance)
    monkeypatch.setattr(block_grid, "blocks_library", lambda: plain)
    found = kind.fit(block, importance)
    assert torch.equal(found.scale, expected.scale)
    assert found.zero is not None
    assert expected.zero is not None
    assert torch.equal(found.zero, expected.zero)


def test_without_a_compiler_torch_does_it(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none(*arguments: Any) -> Path:
        raise NotCompiled("no C compiler is installed (cc)")

    blocks_library._library.cache_clear()
    monkeypatch.setattr(blocks_library, "c_library", none)
    block = weights(scheme("int4"))
    try:
        with caplog.at_level(logging.INFO):
            assert grid(scheme("int4"), block).fit(block, torch.ones(len(block), 1)).scale.shape == (ROWS,)
    finally:
        blocks_library._library.cache_clear()
    assert "weights are solved without compiled code: no C compiler is installed (cc)" in caplog.text


def test_threads_that_ask_at_once_compile_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def slow(*arguments: Any) -> Path:
        calls.append(arguments)
        time.sleep(0.05)
        raise NotCompiled("not here")

    blocks_library._library.cache_clear()
    monkeypatch.setattr(blocks_library, "c_library", slow)
    try:
        with ThreadPoolExecutor(4) as pool:
            assert list(pool.map(lambda _: blocks_library.blocks_library(), range(4))) == [None] * 4
    finally:
        blocks_library._library.cache_clear()
    assert len(calls) == 1


@needs_compiler
def test_under_sanitizers(tmp_path: Path) -> None:
    """No read or write outside of what is given, in either function, for rows that are no multiple of a chunk."""
    assert COMPILER is not None
    program = tmp_path / "main.c"
    program.write_text(DRIVER, encoding="utf-8")
    flags = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-g1", "-O1", "-DCLONES=", "-std=c11"]
    out = tmp_path / "main"
    command = [COMPILER, *flags, f"-I{SOURCES}", "-o", str(out), str(program), str(SOURCES / "blocks.c"), "-lm"]
    if subprocess.run(command, capture_output=True, check=False, timeout=120).returncode:
        pytest.skip("the compiler has no sanitizers")
    done = subprocess.run([out], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


DRIVER = """
#include <stdio.h>
#include <stdlib.h>
#include "blocks.h"
#define MAKE(name, n) \\
    float *name = malloc((n) * sizeof(float)); \\
    for (int i = 0; i < (n); i++) name[i] = (i * 37 % 101) / 50.f - 1
int main(void) {
    enum { F = 33, R = 131, P = 3 };
    MAKE(x, F * R); MAKE(w, F); MAKE(part, P); MAKE(margin, P); MAKE(rows, R);
    MAKE(scale, R); MAKE(base, R); MAKE(zero, R); MAKE(share, F * F); MAKE(level, F * R); MAKE(error, F * R);
    for (int all = 0; all < 27; all++) {
        const int form = all / 9;
        Grid grid = {all % 3, form, all / 3 % 3, P, 0, 15, 8, 1, 15, 255, 1e-38f};
        if (llmc_fit_block(&grid, x, F, R, w, part, margin, form == 1 ? rows : NULL, scale, base, zero)) return 1;
        if (llmc_round_panel(x, x, share, scale, base, 1, F, R, 0, 15, level, error)) return 1;
    }
    free(x); free(w); free(part); free(margin); free(rows); free(scale); free(base); free(zero); free(share);
    free(level); free(error);
    puts("done");
    return 0;
}
"""
