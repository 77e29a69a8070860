"""Vectors and dot products of each instruction set, function by function, against numpy: what vec.h and dot.h say."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from llmc.compiler.base.c_library import COMPILERS
from llmc.runtimes.kernels.library import SOURCES, VARIANTS

from .operators import WARNINGS, guarded

Array = npt.NDArray[Any]
UNARY = ("exp", "round", "integer")
BINARY = ("add", "sub", "mul", "div", "min", "max", "fma", "fms", "fnma", "larger_magnitude", "scale2")
STEP = 32


class Probe:
    """The library of ``probe.c`` for one instruction set."""

    def __init__(self, library: Path) -> None:
        self.library = ctypes.CDLL(str(library))
        self.lanes = self.library.lanes()

    def call(self, name: str, *arguments: Any) -> Any:
        """A function of the library; arrays go by address, plain integers as C's int."""
        given = [x.ctypes.data_as(ctypes.c_void_p) if isinstance(x, np.ndarray) else x for x in arguments]
        return getattr(self.library, name)(*given)

    def apply(self, name: str, *inputs: Array) -> Array:
        """A function of vectors on arrays of one shape; whole vectors are made of them."""
        size = -(-inputs[0].size // self.lanes) * self.lanes
        padded = [np.resize(x.astype(np.float32), size) for x in inputs]
        y = np.empty(size, np.float32)
        which, names = ("unary", UNARY) if name in UNARY else ("binary", BINARY)
        self.call(which, names.index(name), ctypes.c_int64(size), *padded, y)
        return y[: inputs[0].size]


@pytest.fixture(scope="module", params=VARIANTS, ids=lambda variant: variant.name)
def probe(request: Any, tmp_path_factory: pytest.TempPathFactory) -> Probe:
    variant = request.param
    if (reason := variant.unsupported_reason()) is not None:
        pytest.skip(f"CPU kernels: {reason}")
    compiler = next((path for name in COMPILERS if (path := shutil.which(name))), None)
    if compiler is None:
        pytest.skip("no C compiler is installed")
    library = tmp_path_factory.mktemp(variant.name) / "probe.so"
    options = [option for option in variant.options if option != "-fvisibility=hidden"]
    source = Path(__file__).parent / "probe.c"
    subprocess.run(
        [compiler, *options, *WARNINGS, f"-I{SOURCES}", "-o", str(library), str(source), "-lm"], check=True
    )
    return Probe(library)


def floats(size: int, seed: int = 0) -> Array:
    """Of very different size."""
    generator = np.random.default_rng(seed)
    return (generator.normal(size=size) * 10.0 ** generator.integers(-6, 6, size=size)).astype(np.float32)


def test_exp(probe: Probe) -> None:
    x = np.concatenate([np.linspace(-87.3, 88.3, 40001), floats(100) * 1e-6]).astype(np.float32)
    np.testing.assert_allclose(probe.apply("exp", x), np.exp(x.astype(np.float64)), rtol=2e-7, atol=0)
    far = probe.apply("exp", np.asarray([-np.inf, -1e30, 1e30, np.inf, np.nan], np.float32))
    assert (far[:2] < 2e-38).all()
    assert (far[2:4] > 1e38).all()
    assert np.isnan(far[4])


@pytest.mark.parametrize("name", ["round", "integer"])
def test_integers_are_the_nearest_and_halves_even(probe: Probe, name: str) -> None:
    x = np.concatenate([np.arange(-127, 127.5, 0.5), np.linspace(-126.9, 126.9, 999), [0.4999999, -0.5000001]])
    np.testing.assert_array_equal(probe.apply(name, x), np.rint(x.astype(np.float32)))


@pytest.mark.parametrize("name", BINARY[:9])
def test_arithmetic(probe: Probe, name: str) -> None:
    a, b = floats(999), floats(999, seed=1)
    x, y = a.astype(np.float64), b.astype(np.float64)
    exact = {
        "add": x + y,
        "sub": x - y,
        "mul": x * y,
        "div": x / y,
        "min": np.minimum(x, y),
        "max": np.maximum(x, y),
        "fma": x * y + 3,
        "fms": x * y - 3,
        "fnma": 3 - x * y,
    }[name]
    # Of a product that is rounded before it is added to, that is a part of the product.
    bound = np.abs(x * y) * 2.0**-23 + np.abs(exact) * 2.0**-23 if name in {"fma", "fms", "fnma"} else 0
    assert (np.abs(probe.apply(name, a, b) - exact) <= np.maximum(bound, np.abs(exact) * 2.0**-24)).all()


@pytest.mark.parametrize("name", ["min", "max"])
def test_where_one_is_not_a_number_it_is_the_second_or_none(probe: Probe, name: str) -> None:
    nan, one = np.full(16, np.nan), np.ones(16)
    assert np.isnan(probe.apply(name, one, nan)).all()
    second = probe.apply(name, nan, one)
    assert (np.isnan(second) | (second == 1)).all()


def test_the_larger_magnitude(probe: Probe) -> None:
    a = np.asarray([1, -3, 0, -0.0, np.inf, np.nan, 2, -np.nan, 1e-45], np.float32)
    b = np.asarray([-2, 2, -0.0, 0, np.nan, np.inf, -np.inf, 1, -2e-45], np.float32)
    expected = np.asarray([2, 3, 0, 0, np.nan, np.nan, np.inf, np.nan, 2e-45], np.float32)
    made = probe.apply("larger_magnitude", a, b)
    np.testing.assert_array_equal(made, expected)
    assert not np.signbit(made[~np.isnan(made)]).any()


def test_scaling_by_powers_of_two(probe: Probe) -> None:
    n = np.arange(-126, 128, dtype=np.float32)
    np.testing.assert_array_equal(probe.apply("scale2", np.full(n.size, 1.5), n), np.ldexp(1.5, n.astype(int)))


def test_some_lanes(probe: Probe) -> None:
    a, b = floats(probe.lanes), floats(probe.lanes, seed=1)
    for count in (-5, 0, 1, 2, probe.lanes - 1, probe.lanes, probe.lanes + 1, 1 << 40):
        held = max(0, min(count, probe.lanes))
        _, y = guarded([probe.lanes])
        z = np.empty(probe.lanes, np.float32)
        # What is not loaded is not read: an array of the lanes alone, at the end of its memory.
        probe.call("some", ctypes.c_int64(count), a, b, y, z)
        np.testing.assert_array_equal(y[:held], a[:held])
        assert np.isnan(y[held:]).all(), "stored outside of the lanes"
        np.testing.assert_array_equal(z, np.where(np.arange(probe.lanes) < held, a, b))


def test_reductions(probe: Probe) -> None:
    a = np.random.default_rng(2).integers(-50, 50, size=2 * probe.lanes).astype(np.float32)
    y = np.empty(3 + probe.lanes, np.float32)
    for _ in range(3):
        probe.call("reduce", a, y)
        first = a[: probe.lanes]
        np.testing.assert_array_equal(y[:3], [first.sum(), first.max(), np.abs(first).max()])
        np.testing.assert_array_equal(y[3:], [a[i : i + probe.lanes].sum() for i in range(probe.lanes)])
        a = np.roll(-a, 5)
    a[probe.lanes - 1] = np.nan
    probe.call("reduce", a, y)
    assert np.isnan(y[2])


def test_every_float16_is_read(probe: Probe) -> None:
    bits = np.arange(1 << 16, dtype=np.uint16)
    y = np.empty(bits.size, np.float32)
    probe.call("halves", ctypes.c_int64(bits.size), bits, y)
    np.testing.assert_array_equal(y, bits.view(np.float16).astype(np.float32))


def test_float32_to_float16(probe: Probe) -> None:
    """Every float16, halfway between two, just beside halfway, beyond the ends."""
    every = np.arange(0x7C00, dtype=np.uint16).view(np.float16).astype(np.float32)
    halfway = ((every[1:].astype(np.float64) + every[:-1]) / 2).astype(np.float32)
    beside = np.concatenate([np.nextafter(halfway, np.float32(0)), np.nextafter(halfway, np.float32(1e9))])
    ends = np.asarray([65519.996, 65520, 7e4, 1e38, np.inf, 1e-8, 2.9e-8, 3e-8, 1e-45], np.float32)
    x = np.concatenate([every, halfway, beside, ends])
    x = np.concatenate([x, -x, [np.float32(np.nan)]])
    y = np.empty(x.size, np.uint16)
    probe.call("to_half", ctypes.c_int64(x.size), x, y)
    with np.errstate(over="ignore"):
        np.testing.assert_array_equal(y[:-1], x[:-1].astype(np.float16).view(np.uint16))
    assert np.isnan(y[-1:].view(np.float16))


def test_int8_with_its_sum(probe: Probe) -> None:
    for seed in range(8):
        a = np.random.default_rng(seed).uniform(-127, 127, size=probe.lanes).astype(np.float32)
        a[seed % probe.lanes] = 127
        y = np.empty(probe.lanes, np.int8)
        assert probe.call("to_int8", a, y) == np.rint(a).sum()
        np.testing.assert_array_equal(y, np.rint(a))


def test_int8_is_saturated(probe: Probe) -> None:
    a = np.resize(np.asarray([-32000, -129, -128, -127, 127, 128, 129, 32000], np.float32), probe.lanes)
    y = np.empty(probe.lanes, np.int8)
    assert probe.call("to_int8", a, y) == a.sum()
    np.testing.assert_array_equal(y, np.clip(a, -128, 127))


def test_every_16_bits_are_two_int8(probe: Probe) -> None:
    every = np.arange(-32639, 32640)
    padded = np.resize(every, -(-every.size // probe.lanes) * probe.lanes)
    upper, lower = np.empty(padded.size, np.int8), np.empty(padded.size, np.int8)
    for start in range(0, padded.size, probe.lanes):
        part = slice(start, start + probe.lanes)
        probe.call("to_halves", padded[part].astype(np.float32), upper[part], lower[part])
    np.testing.assert_array_equal(256 * upper.astype(int) + lower, padded)


def test_every_code_is_read(probe: Probe) -> None:
    every, y = np.arange(256, dtype=np.uint8), np.empty(256, np.float32)
    probe.call("codes", ctypes.c_int64(256), every, y)
    np.testing.assert_array_equal(y, every)


@pytest.mark.parametrize(("low", "high"), [(2, 0), (2, 1), (4, 0), (4, 1), (4, 2), (8, 0)])
@pytest.mark.parametrize("kind", ["random", "ends", "one"])
def test_a_step_is_packed_without_a_gap_and_multiplied(probe: Probe, kind: str, low: int, high: int) -> None:
    bits = low + high
    generator = np.random.default_rng(3)
    levels = generator.integers(0, 2**bits, size=(probe.lanes, STEP)).astype(np.uint8)
    x = generator.integers(-127, 128, size=STEP).astype(np.int8)
    if kind == "ends":
        levels[:], x[:] = 2**bits - 1, -128
    if kind == "one":
        # Each feature counts for its own row and nothing else.
        levels = np.eye(probe.lanes, STEP, dtype=np.uint8) * np.uint8(2**bits - 1)
        x = np.arange(STEP, dtype=np.int8)
    memory = np.full(probe.lanes * STEP * bits // 8 + 128, 77, np.uint8)
    start = -memory.ctypes.data % 64
    packed = memory[start:]
    y = np.empty(probe.lanes, np.float32)
    probe.call("step", low, high, np.ascontiguousarray(levels), packed, x, y)
    np.testing.assert_array_equal(y, 2 * (levels.astype(int) @ x.astype(int)))
    assert (packed[probe.lanes * STEP * bits // 8 :] == 77).all()
