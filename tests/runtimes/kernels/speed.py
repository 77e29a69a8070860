"""How fast the CPU operators multiply: ``python -m tests.runtimes.kernels.speed``, on a machine that is idle.

In: formats, shapes, rows of activations and threads. Out: a line for each with the time of one product, and the bytes
of weights and multiplications a second; in the end the same as a table in Markdown, under the machine, the date and
the bandwidth with which it reads memory, as the header of ``block_matmul.h`` and the docs quote them.

A decode step reads each weight once, from memory: below MANY rows a graph of as many products as fill ``--megabytes``
runs once a call, each with its own copy of the weight; with ``--megabytes 0`` it is one, whose weight stays in the
cache where it fits. Formats take turns. ``--cpu`` takes the processor's time instead of the clock's: other processes
disturb it less, but of threads that wait for each other it says nothing.
"""

from __future__ import annotations

import argparse
import datetime
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.graph.operators import cpu
from llmc.runtimes.machine.bandwidth import measure_read_bandwidth
from llmc.runtimes.machine.fingerprint import machine_fingerprint

from .operators import PRODUCT, library

Array = npt.NDArray[Any]
SHAPES = ("576x1536", "576x3072", "1536x576", "2048x2048", "2048x16384", "8192x2048")
MANY = 16
"""Rows from which on a product computes rather than reads."""
FORMATS = (
    *("offsets4@32", "q4@32", "q4@64", "q5@32", "q5@64", "q6@32", "q6@64", "q8@64", "q3@64", "q2@64"),
    *("q4@64/16", "q5@32/16", "q6@32/16", "q6@64/16", "q8@64/16"),
)
"""Those of the recipes (``RECIPES`` in ``compiler/quantization/plan.py``) among them."""


@dataclass(frozen=True)
class Format:
    """How weights are stored, by its name: ``offsets4@32`` or ``q5@64``, with ``/16`` activations of 16 bits."""

    bits: int
    block_size: int
    coded: bool
    activation_bits: int

    @classmethod
    def parse(cls, name: str) -> Format:
        """Of a name."""
        weight, _, activations = name.partition("/")
        kind, _, block = weight.partition("@")
        coded = kind.startswith("q")
        return cls(int(kind.removeprefix("q" if coded else "offsets")), int(block), coded, int(activations or 8))

    def packed_bytes(self, k: int, n: int) -> float:
        """What a product reads of its weight."""
        blocks = -(-k // self.block_size)
        return n * blocks * (self.block_size * self.bits / 8 + (2 if self.coded else 4))

    def constants(self, k: int, n: int) -> dict[str, Array]:
        """A weight at random."""
        generator, blocks = np.random.default_rng(0), -(-k // self.block_size)

        def codes(*shape: int) -> Array:
            return generator.integers(0, 256, size=shape, dtype=np.uint8)

        low = cpu.low_bits(self.bits)
        parts = {"w": codes(n, blocks, self.block_size * low // 8)}
        if not self.coded:
            scales = generator.uniform(0.001, 0.002, size=(n, blocks)).astype(np.float32)
            return {**parts, "scales": scales, "offsets": np.ascontiguousarray(scales.T)}
        parts |= {"scales": codes(n, blocks), "zeros": codes(n, blocks), "row_scales": np.full(n, 1e-5, np.float32)}
        if self.bits > low:
            parts["high"] = codes(n, blocks, self.block_size * (self.bits - low) // 8)
        return parts


class Products:
    """A session of ``count`` products of one shape and format, on the same activations."""

    def __init__(self, form: Format, k: int, n: int, count: int, threads: int) -> None:
        """Each product packs the weight for itself."""
        constants = form.constants(k, n)
        names = [name if name in {"a", *constants} else "" for name in PRODUCT]
        attributes = {"K": k, "N": n, "bits": form.bits, "block_size": form.block_size}
        nodes = [
            helper.make_node(
                "MatMulNBits", names, [f"y{i}"], domain="llmc.cpu", activation_bits=form.activation_bits, **attributes
            )
            for i in range(count)
        ]
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [None, None]) for name in ("a", "y0")]
        initializers = [numpy_helper.from_array(part, name) for name, part in constants.items()]
        # What nothing reads is left out by the runtime: every product's result is one of the graph.
        results = [helper.make_tensor_value_info(f"y{i}", TensorProto.FLOAT, [None, None]) for i in range(count)]
        graph = helper.make_graph(nodes, "g", value[:1], results, initializers)
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid("llmc.cpu", 1)]
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.register_custom_ops_library(str(library()))
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10).SerializeToString()
        self.session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        self.k, self.count = k, count

    def seconds(self, rows: int, clock: Callable[[], float]) -> float:
        """Of one product."""
        a = np.random.default_rng(1).normal(size=(rows, self.k)).astype(np.float32)
        start = clock()
        self.session.run(None, {"a": a})
        return (clock() - start) / self.count


def copies(form: Format, k: int, n: int, megabytes: int) -> int:
    """Weights that fill so many megabytes."""
    return max(1, round(megabytes * 1e6 / form.packed_bytes(k, n)))


@dataclass(frozen=True)
class Timing:
    """Of one product: its shape, format and rows; seconds, median and least of the rounds."""

    shape: str
    format: str
    rows: int
    median: float
    least: float

    @property
    def read(self) -> float:
        """Bytes of weights a second, in units of 10^9."""
        return Format.parse(self.format).packed_bytes(*sizes(self.shape)) / self.median / 1e9

    @property
    def multiplied(self) -> float:
        """Multiplications a second, in units of 10^9."""
        k, n = sizes(self.shape)
        return self.rows * k * n / self.median / 1e9

    def line(self) -> str:
        """Under :data:`HEADING`."""
        return (
            f"{self.shape:>12} {self.format:>12} {self.rows:>5} {self.median * 1e6:>11.1f} {self.least * 1e6:>9.1f} "
            f"{self.read:>7.1f} {self.multiplied:>8.0f}"
        )


HEADING = f"{'shape':>12} {'format':>12} {'rows':>5} {'us, median':>11} {'least':>9} {'GB/s':>7} {'Gmul/s':>8}"


def sizes(shape: str) -> tuple[int, int]:
    """Input and output features of ``KxN``."""
    k, n = map(int, shape.split("x"))
    return k, n


def timings(shape: str, rows: int, options: argparse.Namespace) -> list[Timing]:
    """Of all formats, which take turns."""
    k, n = sizes(shape)
    clock = time.process_time if options.cpu else time.perf_counter
    megabytes = options.megabytes if rows < MANY else 0
    forms = {name: Format.parse(name) for name in options.formats}
    sessions = {
        name: Products(form, k, n, copies(form, k, n, megabytes), options.threads) for name, form in forms.items()
    }
    times: dict[str, list[float]] = {name: [] for name in forms}
    for round_ in range(options.rounds + 1):
        for name, products in sessions.items():
            seconds = products.seconds(rows, clock)
            if round_:
                times[name].append(seconds)
    return [Timing(shape, name, rows, statistics.median(each), min(each)) for name, each in times.items()]


def markdown(found: Iterable[Timing]) -> str:
    """A line for each shape and format; GB/s below :data:`MANY` rows, where it reads, Gmul/s from there on."""
    cells: dict[tuple[str, str], dict[int, str]] = {}
    for timing in found:
        text = f"{timing.read:.1f} GB/s" if timing.rows < MANY else f"{timing.multiplied:.0f} Gmul/s"
        cells.setdefault((timing.shape, timing.format), {})[timing.rows] = text
    columns = sorted({rows for row in cells.values() for rows in row})
    headings = ["shape", "weights", *(f"{rows} row{'' if rows == 1 else 's'}" for rows in columns)]
    lines: list[Sequence[str]] = [headings, ["---", "---", *["---:"] * len(columns)]]
    lines += [[*key, *(row.get(rows, "") for rows in columns)] for key, row in cells.items()]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def where(threads: int) -> str:
    """The machine, what it reads of memory, and when that was."""
    machine, reached = machine_fingerprint(), measure_read_bandwidth(threads).bytes_per_second
    features = f", {', '.join(machine.isa)}" if machine.isa else ""
    return (
        f"{machine.cpu_model}{features}; {threads} of {machine.physical_cores} cores; read bandwidth of "
        f"memory {reached.median / 1e9:.1f} GB/s ({reached.minimum / 1e9:.1f} to {reached.maximum / 1e9:.1f}); "
        f"ONNX Runtime {ort.__version__}; {datetime.date.today():%d %B %Y}"
    )


def main() -> None:
    """Time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", nargs="+", default=SHAPES, help="KxN, input and output features")
    parser.add_argument("--formats", nargs="+", default=FORMATS, help="offsets<bits>@<block> or q<bits>@<block>[/16]")
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 2, 8, 64, 512])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cpu", action="store_true", help="the processor's time")
    parser.add_argument("--megabytes", type=int, default=128, help="of the weights that a call reads")
    options = parser.parse_args()
    place = where(options.threads)
    print(HEADING)
    found = []
    for shape in options.shapes:
        for rows in options.rows:
            for timing in timings(shape, rows, options):
                found.append(timing)
                print(timing.line(), flush=True)
    print(f"\n{place}\n\n{markdown(found)}")


if __name__ == "__main__":
    main()
