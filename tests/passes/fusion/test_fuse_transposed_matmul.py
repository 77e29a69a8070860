from __future__ import annotations

import pytest

from llmc.passes.cleanup.remove_dead_code import RemoveDeadCode
from llmc.passes.fusion.fuse_transposed_matmul import FuseTransposedMatMul

from ..graphs import apply, close, draw, left_alone, node_of, operators, parse, run

TEXT = "m (float[b, s, 16] x, float[24, 16] z) => (logits) {{ t = Transpose{}({})\nlogits = MatMul(x, t) }}"
FEEDS = {"x": draw(2, 3, 16, seed=1), "z": draw(24, 16, seed=2)}


@pytest.mark.parametrize("perm", ["<perm=[1,0]>", ""])
def test_it_matches_and_numbers_agree(perm: str) -> None:
    model = parse(TEXT.format(perm, "table"), {"table": draw(24, 16)}, lazy=True)
    node_of(model, "MatMul").name = "lm_head/MatMul"
    before = run(model, FEEDS)
    tally = apply(FuseTransposedMatMul(), model)
    assert tally.fired == tally.expected == {"transposed_matmul": 1}
    apply(RemoveDeadCode(), model)
    assert operators(model) == ["com.microsoft::FusedMatMul"]
    assert node_of(model, "FusedMatMul").name == "lm_head/MatMul"
    close(run(model, FEEDS), before)


def test_the_last_axes_of_a_stack_are_swapped() -> None:
    model = parse(TEXT.format("<perm=[0,2,1]>", "cube"), {"cube": draw(2, 24, 16)})
    before = run(model, FEEDS)
    apply(FuseTransposedMatMul(), model)
    close(run(model, FEEDS), before)


def test_a_table_that_is_looked_up_stays_one_tensor() -> None:
    body = "x = Gather(table, ids)\nt = Transpose<perm=[1,0]>(table)\nlogits = MatMul(x, t)"
    model = parse(f"m (int64[b, s] ids) => (logits) {{ {body} }}", {"table": draw(24, 16)}, lazy=True)
    apply(FuseTransposedMatMul(), model)
    apply(RemoveDeadCode(), model)
    assert list(model.graph.initializers) == ["table"]


@pytest.mark.parametrize(
    ("attribute", "shape", "perm"),
    [
        ("<perm=[2,1,0]>", (5, 16, 2), [2, 1, 0]),
        ("", (5, 16, 2), [2, 1, 0]),
        ("<perm=[1,0,3,2]>", (2, 1, 5, 16), [1, 0, 3, 2]),
        ("<perm=[0,1]>", (16, 24), [0, 1]),
    ],
    ids=["reversed", "reversed by default", "two swaps", "none"],
)
def test_more_than_a_swap_of_the_last_axes_is_left_alone(
    attribute: str, shape: tuple[int, ...], perm: list[int]
) -> None:
    model = parse(TEXT.format(attribute, "cube"), {"cube": draw(*shape)})
    reason = f"its constant is transposed by {perm}, which does more than swap the last two axes"
    assert left_alone(FuseTransposedMatMul(), model) == [reason]


@pytest.mark.parametrize("operand", ["z", "double"])
def test_what_is_no_constant_is_no_site(operand: str) -> None:
    text = TEXT.format("<perm=[1,0]>", operand).replace("{ t", "{ double = Add(z, z)\nt")
    assert left_alone(FuseTransposedMatMul(), parse(text)) == []
