"""How fast the CPU operators multiply: ``python -m tests.runtimes.kernels.speed``, on a machine that is idle.

In: formats, shapes, rows of activations and threads. Out: a line for each with the time of one product, and the bytes
of weights and multiplications a second. A decode step reads each weight once, from memory: below MANY rows a graph of
as many products as fill ``--megabytes`` runs once a call, each with its own copy of the weight. Formats take turns.
``--cpu`` takes the processor's time instead of the clock's: other processes disturb it less, but of threads that wait
for each other it says nothing.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.graph.operators import cpu

from .operators import PRODUCT, library

Array = npt.NDArray[Any]
SHAPES = ("576x1536", "576x3072", "1536x576", "2048x2048", "2048x16384", "8192x2048")
MANY = 16
"""Rows from which on a product computes rather than reads."""
FORMATS = ("offsets4@32", "q4@64", "q4@32", "q5@64", "q6@64", "q8@64", "q3@64", "q2@64", "q4@64/16", "q6@64/16")


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
    clock = time.process_time if options.cpu else time.perf_counter
    print(f"{'shape':>12} {'format':>12} {'rows':>5} {'us, median':>11} {'least':>9} {'GB/s':>7} {'Gmul/s':>8}")
    for shape in options.shapes:
        k, n = map(int, shape.split("x"))
        forms = {name: Format.parse(name) for name in options.formats}
        for rows in options.rows:
            megabytes = options.megabytes if rows < MANY else 0
            sessions = {
                name: Products(form, k, n, copies(form, k, n, megabytes), options.threads)
                for name, form in forms.items()
            }
            times: dict[str, list[float]] = {name: [] for name in forms}
            for round_ in range(options.rounds + 1):
                for name, products in sessions.items():
                    seconds = products.seconds(rows, clock)
                    if round_:
                        times[name].append(seconds)
            for name, form in forms.items():
                least, median = min(times[name]), statistics.median(times[name])
                print(
                    f"{shape:>12} {name:>12} {rows:>5} {median * 1e6:>11.1f} {least * 1e6:>9.1f} "
                    f"{form.packed_bytes(k, n) / median / 1e9:>7.1f} {rows * k * n / median / 1e9:>8.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
