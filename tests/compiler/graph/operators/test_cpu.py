"""What llmc.cpu takes: passes and operators state the same, and the reasons name what was asked for."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from llmc.compiler.graph.operators import cpu
from llmc.runtimes.kernels.library import SOURCES

HEADER = Path(SOURCES / "contract.h").read_text(encoding="utf-8")
ENUMS = [re.split(r",\s*", body.strip()) for body in re.findall(r"enum \{(.*?)\}", HEADER, re.DOTALL)]


@pytest.mark.parametrize("name", ["BLOCK_MULTIPLE", "HALF_MULTIPLE", "HEAD_MULTIPLE", "LARGEST_HEAD"])
def test_multiples_are_those_of_the_operators(name: str) -> None:
    assert re.findall(rf"#define {name} (\d+)", HEADER) == [str(getattr(cpu, name))]


def test_bits_are_those_of_the_operators() -> None:
    (condition,) = re.findall(r"#define IS_BITS\(bits\) (.*?)/\*", HEADER)
    assert tuple(map(int, re.findall(r"== (\d+)", condition))) == cpu.BITS


def test_bits_of_coded_weights_are_those_of_the_operators() -> None:
    (condition,) = re.findall(r"#define IS_CODED_BITS\(bits\) (.*?)/\*", HEADER)
    taken = re.sub(r"\|\|", "or", re.sub("&&", "and", condition))
    assert tuple(bits for bits in range(32) if eval(taken, {"bits": bits})) == cpu.CODED_BITS
    (planes,) = re.findall(r"#define LOW_BITS\(bits\) (.*?)/\*", HEADER)
    assert planes.strip() == "((bits) <= 3 ? 2 : (bits) <= 6 ? 4 : 8)"
    assert [cpu.low_bits(bits) for bits in cpu.CODED_BITS] == [2, 2, 4, 4, 4, 8]
    (condition,) = re.findall(r"#define IS_ACTIVATION_BITS\(bits\) (.*?)/\*", HEADER)
    assert tuple(map(int, re.findall(r"== (\d+)", condition))) == cpu.ACTIVATION_BITS


def test_activations_are_those_of_the_operators() -> None:
    assert ENUMS[0] == [f"{item.name} = {item.value}" for item in cpu.Activation]


@pytest.mark.parametrize(("index", "last"), [(1, "MATMUL_INPUTS"), (2, "ATTENTION_INPUTS")])
def test_inputs_are_those_of_the_operators(index: int, last: str) -> None:
    signature = {"MATMUL_INPUTS": cpu.MATMUL, "ATTENTION_INPUTS": cpu.ATTENTION}[last]
    assert ENUMS[index] == [*(f"IN_{name.upper()}" for name in signature.inputs), last]


def test_inputs_of_a_table_are_those_of_the_operator() -> None:
    assert ENUMS[3] == [*(f"OF_{name.upper()}" for name in cpu.GATHER.inputs), "GATHER_INPUTS"]


def test_the_gated_product_takes_what_the_plain_one_takes() -> None:
    assert (cpu.GATED_MATMUL.inputs, cpu.GATED_MATMUL.outputs) == (cpu.MATMUL.inputs, cpu.MATMUL.outputs)
    assert {cpu.DOMAIN} == {item.domain for item in (cpu.MATMUL, cpu.GATED_MATMUL, cpu.GATHER, cpu.ATTENTION)}


@pytest.mark.parametrize(("bits", "block_size"), [(4, 32), (8, 32), (4, 96), (8, 4096)])
def test_formats(bits: int, block_size: int) -> None:
    assert cpu.refused_format(bits, block_size) is None


@pytest.mark.parametrize(("bits", "block_size"), [(2, 32), (16, 32), (0, 32), (4, 16), (8, 48), (4, 0), (4, -32)])
def test_other_formats(bits: int, block_size: int) -> None:
    reason = f"llmc.cpu takes 4 or 8 bits in blocks of a multiple of 32, not {bits} and {block_size}"
    assert cpu.refused_format(bits, block_size) == reason


def test_coded_formats() -> None:
    taken = [bits for bits in range(17) if cpu.refused_format(bits, 64, coded=True) is None]
    assert taken == [2, 3, 4, 5, 6, 8]
    reason = "llmc.cpu takes 2, 3, 4, 5, 6 or 8 bits in blocks of a multiple of 32, not 4 and 16"
    assert cpu.refused_format(4, 16, coded=True) == reason


@pytest.mark.parametrize(("sizes", "taken"), [((16, 16), True), ((48, 48), True), ((16, 32), False), ((8, 8), False)])
def test_halves(sizes: tuple[int, ...], taken: bool) -> None:
    reason = f"its halves are {list(sizes)}, not two of the same multiple of 16"
    assert cpu.refused_halves(sizes) == (None if taken else reason)
    assert cpu.refused_halves((16, 16, 16)) is not None


@pytest.mark.parametrize("head", [16, 48, 257, 288, 0, -32, "d", None])
def test_heads(head: int | str | None) -> None:
    assert cpu.refused_head(head) == f"llmc.cpu takes head sizes that are multiples of 32 up to 256, not {head}"
    assert [cpu.refused_head(size) for size in (32, 96, 256)] == [None] * 3
