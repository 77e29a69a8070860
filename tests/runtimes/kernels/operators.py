"""One node of the domain llmc.cpu on ONNX Runtime, in buffers that show a write behind their end.

Also what it is given and compared with: weights whose values float64 states exactly, and activations that int8 holds
exactly, so that an engine's rounding of either is no excuse.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from llmc.runtimes.kernels.library import Variant, default_variant, kernel_library

Array = npt.NDArray[Any]
GUARD = 64
"""Floats behind each output."""
UNTOUCHED = np.float32(-77.25)
RANKS = {"bias": 1, "gamma": 1, "w": 3, "scales": 2, "zeros": 2, "offsets": 2, "high": 3, "row_scales": 1}
PRODUCT = ("a", "w", "scales", "zeros", "bias", "gamma", "skip", "offsets", "high", "row_scales")
GATHER = ("ids", "w", "scales", "zeros", "high", "row_scales")
CODED = dict.fromkeys(("w", "scales", "zeros", "high"), TensorProto.UINT8) | {"ids": TensorProto.INT64}
WARNINGS = ("-Wall", "-Wextra", "-Werror")
"""Here, and not where users compile: their compiler may be newer and warn of more."""

current: Variant | None = None
"""What the fixture ``variant`` has chosen."""


def library() -> Path:
    """The operators that are tested, compiled without a warning."""
    variant = current or default_variant()
    more = os.environ.get("LLMC_TEST_KERNEL_FLAGS", "").split()
    return kernel_library(variant=replace(variant, flags=(*variant.flags, *WARNINGS, *more)))


class Node:
    """A session of one node; its shapes are open, so that one session takes calls of many shapes."""

    def __init__(
        self,
        op: str,
        inputs: Sequence[str],
        outputs: Sequence[str],
        *,
        ranks: Mapping[str, int],
        constants: Mapping[str, Array] | None = None,
        types: Mapping[str, int] | None = None,
        threads: int = 1,
        **attributes: Any,
    ) -> None:
        """``inputs``: names in the operator's order, "" for none; those of ``constants`` are initializers."""
        constants = constants or {}
        names = list(inputs)
        while not names[-1]:
            names.pop()
        node = helper.make_node(op, names, list(outputs), domain="llmc.cpu", **attributes)
        self.inputs = [name for name in names if name and name not in constants]
        self.outputs = [name for name in outputs if name]
        graph = helper.make_graph(
            [node],
            "g",
            [_info(name, (types or {}).get(name, TensorProto.FLOAT), ranks.get(name)) for name in self.inputs],
            [_info(name, TensorProto.FLOAT, None) for name in self.outputs],
            [numpy_helper.from_array(value, name) for name, value in constants.items() if name in names],
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("llmc.cpu", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.log_severity_level = 4
        options.register_custom_ops_library(str(library()))
        self.session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])

    def __call__(self, feeds: Mapping[str, Array], shapes: Mapping[str, Sequence[int]]) -> dict[str, Array]:
        """The outputs, of the given shapes; NaN where nothing was written.

        Raises:
            AssertionError: something was written behind an output.
        """
        buffers = {name: guarded(shapes[name]) for name in self.outputs}
        self.run_into(feeds, buffers)
        for name, (buffer, _) in buffers.items():
            assert (buffer[-GUARD:] == UNTOUCHED).all(), f"written behind {name}"
        return {name: view for name, (_, view) in buffers.items()}

    def run_into(self, feeds: Mapping[str, Array], buffers: Mapping[str, tuple[Array, Array]]) -> None:
        """Run with the outputs bound to the views of ``buffers``."""
        binding = self.session.io_binding()
        for name in self.inputs:
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(feeds[name]))
        for name, (_, view) in buffers.items():
            binding.bind_ortvalue_output(name, ort.OrtValue.ortvalue_from_numpy(view))
        self.session.run_with_iobinding(binding)


def guarded(shape: Sequence[int], fill: float = np.nan) -> tuple[Array, Array]:
    """A buffer and the part of it that has the given shape; the rest is the guard."""
    size = int(np.prod(shape))
    buffer = np.full(size + GUARD, UNTOUCHED, np.float32)
    buffer[:size] = fill
    return buffer, buffer[:size].reshape(shape)


def _info(name: str, kind: int, rank: int | None) -> Any:
    return helper.make_tensor_value_info(name, kind, None if rank is None else [None] * rank)


@dataclass(frozen=True)
class Levels:
    """What quantized weights have in common.

    Attributes:
        levels: [n, blocks * block_size] integers, those behind the last feature too.
    """

    bits: int
    block_size: int
    k: int
    levels: Array

    @property
    def n(self) -> int:
        """Output features."""
        return len(self.levels)

    @property
    def attributes(self) -> dict[str, int]:
        """Those of the operator."""
        return {"K": self.k, "N": self.n, "bits": self.bits, "block_size": self.block_size}


@dataclass(frozen=True)
class Weight(Levels):
    """A quantized weight as com.microsoft::MatMulNBits stores it, before it is packed.

    Attributes:
        scales: [n, blocks] float32.
        zeros: [n, blocks] integers, or None.
        offsets: [n, blocks] float32, or None.
    """

    scales: Array
    zeros: Array | None = None
    offsets: Array | None = None

    def values(self) -> Array:
        """[n, k] float64: (level - zero point) * scale, or (level - 2^(bits-1)) * scale + offset."""
        blocks = self.levels.reshape(self.n, -1, self.block_size).astype(np.float64)
        middle = np.full(self.scales.shape, 2.0 ** (self.bits - 1)) if self.zeros is None else self.zeros
        values = (blocks - middle[..., None]) * self.scales.astype(np.float64)[..., None]
        if self.offsets is not None:
            values += self.offsets.astype(np.float64)[..., None]
        return values.reshape(self.n, -1)[:, : self.k]

    def constants(self) -> dict[str, Array]:
        """The operator's inputs."""
        blocks = self.scales.shape[1]
        made = {"w": _packed(self.levels, self.bits).reshape(self.n, blocks, -1), "scales": self.scales}
        if self.zeros is not None:
            made["zeros"] = _packed(self.zeros, self.bits)
        if self.offsets is not None:
            made["offsets"] = np.ascontiguousarray(self.offsets.T)
        return made


def _packed(levels: Array, bits: int) -> Array:
    levels = levels.astype(np.uint8)
    if bits == 8:
        return levels
    even = np.pad(levels, ((0, 0), (0, levels.shape[1] % 2)))
    return even[:, 0::2] | (even[:, 1::2] << 4)


@dataclass(frozen=True)
class CodedWeight(Levels):
    """A quantized weight whose scales and zero points are codes of 8 bits, before it is packed.

    Attributes:
        codes: [n, blocks] uint8.
        row_scales: [n] float32.
        zeros: [n, blocks] uint8, in units of 2^(bits - 8), or None.
    """

    codes: Array
    row_scales: Array
    zeros: Array | None = None

    def values(self) -> Array:
        """[n, k] float64: row scale * code * (level - zero point)."""
        blocks = self.levels.reshape(self.n, -1, self.block_size).astype(np.float64)
        unit = 2.0 ** (self.bits - 8)
        zeros = np.full(self.codes.shape, 128) if self.zeros is None else self.zeros
        values = (blocks - zeros[..., None] * unit) * self.codes.astype(np.float64)[..., None]
        return values.reshape(self.n, -1)[:, : self.k] * self.row_scales.astype(np.float64)[:, None]

    def constants(self) -> dict[str, Array]:
        """The operator's inputs."""
        low = 2 if self.bits <= 3 else 4 if self.bits <= 6 else 8
        shape = (self.n, self.codes.shape[1], -1)
        constants = {
            "w": _plane(self.levels % 2**low, low).reshape(shape),
            "scales": self.codes,
            "row_scales": self.row_scales,
        }
        if self.bits > low:
            constants["high"] = _plane(self.levels >> low, self.bits - low).reshape(shape)
        if self.zeros is not None:
            constants["zeros"] = self.zeros
        return constants


def _plane(levels: Array, bits: int) -> Array:
    """Levels of ``bits`` bits side by side, the first in the lowest bits."""
    shifted = levels.reshape(-1, 8 // bits).astype(np.uint8) << np.arange(0, 8, bits, dtype=np.uint8)
    return np.bitwise_or.reduce(shifted, axis=1)


def coded_weight(
    generator: np.random.Generator,
    n: int,
    k: int,
    bits: int,
    block_size: int,
    *,
    zeros: bool = True,
    exponent: int = 0,
) -> CodedWeight:
    """Levels, codes, zero points and row scales at random, codes of 0 and signed row scales among them.

    Args:
        zeros: With zero points.
        exponent: Row scales are 1 to 2, times 2^exponent.
    """
    shape = (n, -(-k // block_size))
    return CodedWeight(
        bits,
        block_size,
        k,
        generator.integers(0, 2**bits, size=(n, shape[1] * block_size)),
        generator.integers(0, 256, size=shape).astype(np.uint8),
        (generator.choice([-1, 1], size=n) * generator.uniform(1, 2, size=n) * 2.0**exponent).astype(np.float32),
        generator.integers(0, 256, size=shape).astype(np.uint8) if zeros else None,
    )


def random_weight(
    generator: np.random.Generator,
    n: int,
    k: int,
    bits: int,
    block_size: int,
    kind: str = "plain",
    exponent: int = 0,
) -> Weight:
    """Levels, signed scales, zero points or offsets at random; all of them are float16 times a power of two.

    Args:
        kind: ``plain``, ``zeros`` or ``offsets``.
        exponent: Scales are 1 to 2, times 2^exponent.
    """
    blocks = -(-k // block_size)
    levels = generator.integers(0, 2**bits, size=(n, blocks * block_size))
    signs = generator.choice([-1.0, 1.0], size=(n, blocks))
    scales = (signs * generator.integers(1024, 2048, size=(n, blocks)) * 2.0 ** (exponent - 10)).astype(np.float32)
    weight = Weight(bits, block_size, k, levels, scales)
    if kind == "zeros":
        return replace(weight, zeros=generator.integers(0, 2**bits, size=(n, blocks)))
    if kind == "offsets":
        quarters = generator.integers(-60, 60, size=(n, blocks)) / 4
        return replace(weight, offsets=(scales * quarters).astype(np.float32))
    return weight


def identity(k: int, block_size: int = 32) -> Weight:
    """A product with it gives the activations as the kernel has rounded them."""
    size = -(-k // block_size) * block_size
    levels = 128 + np.eye(k, size, dtype=np.int64)
    return Weight(8, block_size, k, levels, np.ones((k, size // block_size), np.float32))


def nothing(n: int, k: int = 32, block_size: int = 32) -> Weight:
    """A product with it is 0."""
    blocks = -(-k // block_size)
    return Weight(4, block_size, k, np.full((n, blocks * block_size), 8), np.ones((n, blocks), np.float32))


def exact_rows(generator: np.random.Generator, rows: int, k: int, block_size: int, most: int = 127) -> Array:
    """[rows, k] float32: in each block integers up to ``most``, which one of them is, times a power of two."""
    made = np.empty((rows, k), np.float32)
    for start in range(0, k, block_size):
        count = min(block_size, k - start)
        block = generator.integers(-most, most + 1, size=(rows, count))
        block[np.arange(rows), generator.integers(0, count, size=rows)] = generator.choice([-most, most], size=rows)
        made[:, start : start + count] = block * 2.0 ** generator.integers(-9, 6, size=(rows, 1))
    return made


def gather(
    weight: CodedWeight, *, rank: int = 1, constants: Mapping[str, Array] | None = None, **changes: Any
) -> Node:
    """A session of one GatherNBits; ``changes`` are its threads, and other attributes than the weight's."""
    constants = weight.constants() if constants is None else constants
    return Node(
        "GatherNBits",
        [name if name in {"ids", "w", "scales", "row_scales", *constants} else "" for name in GATHER],
        ["y"],
        ranks={**RANKS, "ids": rank},
        types=CODED,
        constants=constants,
        **{**weight.attributes, **changes},
    )


def product(
    weight: Weight | CodedWeight,
    *,
    op: str = "MatMulNBits",
    given: Sequence[str] = (),
    outputs: int = 1,
    constants: Mapping[str, Array] | None = None,
    rank: int = 2,
    ranks: Mapping[str, int] | None = None,
    threads: int = 1,
    **attributes: Any,
) -> Node:
    """A session of one product.

    Args:
        given: Optional inputs that are fed: ``bias``, ``gamma``, ``skip``.
        constants: Instead of the weight's.
        rank: Of activations and residual.
        ranks: Of other inputs, where they are not those that the operator takes.
        attributes: Beside the weight's; None takes one away.
    """
    constants = weight.constants() if constants is None else constants
    names = [name if name in {"a", "w", "scales", *constants, *given} else "" for name in PRODUCT]
    both = {**weight.attributes, **attributes}
    return Node(
        op,
        names,
        ["y", "sum"][:outputs],
        ranks={**RANKS, "a": rank, "skip": rank, **(ranks or {})},
        types=CODED if isinstance(weight, CodedWeight) else dict.fromkeys(("w", "zeros"), TensorProto.UINT8),
        constants=constants,
        threads=threads,
        **{name: value for name, value in both.items() if value is not None},
    )
