from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.passes.attention.attention_site import appended_keys, find_site
from llmc.passes.attention.extract_attention import ExtractedAttention
from llmc.passes.graph_pass import NearMiss

from ..arithmetic_attention import DIM, HEADS, Arithmetic, feeds
from ..graphs import draw, run


def cut(model: ir.Model, layer: int = 0) -> ExtractedAttention:
    return ExtractedAttention(model, find_site(model, appended_keys(model)[layer]))


BY_POSITION = Arithmetic(
    bias="place{i} = Cast<to=1>(position_ids)\n place3{i} = Unsqueeze(place{i}, axes13)\n"
    "more{i} = Add(place3{i}, unit)\n biased{i} = Mul(scored{i}, more{i})",
    constants={"axes13": [1, 3], "unit": np.float32(1)},
)
GROUPED = Arithmetic(
    keys="\n".join(
        f"col_{n}{{i}} = Unsqueeze(p{n}{{i}}, axis2)\n wide_{n}{{i}} = Expand(col_{n}{{i}}, repeats)\n"
        f"all_{n}{{i}} = Reshape(wide_{n}{{i}}, all_heads)"
        for n in "kv"
    ),
    kv_heads=2,
    constants={"repeats": [1, 1, HEADS // 2, 1, 1], "all_heads": [0, HEADS, -1, DIM]},
)


@pytest.mark.parametrize("arithmetic", [Arithmetic(), BY_POSITION, GROUPED], ids=["plain", "positions", "grouped"])
@pytest.mark.parametrize(("past", "seq", "padding"), [(0, 5, 0), (4, 3, 0), (4, 3, 2), (6, 1, 6)])
def test_the_cut_computes_what_the_graph_does(arithmetic: Arithmetic, past: int, seq: int, padding: int) -> None:
    """Positions are those of the chunk's columns, counted by the mask from 0 on."""
    model = arithmetic.model()
    attention = cut(model)
    site = attention.site
    known = {value.name for value in model.graph.outputs}
    cuts = [site.query.value, site.key.outputs[0], site.value.outputs[0], site.output.value]
    for value in cuts:
        value.dtype = ir.DataType.FLOAT
    model.graph.outputs.extend(value for value in cuts if value.name not in known)
    given = feeds(arithmetic, past, seq, padding)
    made = run(model, given)
    query, key, value, output = (made[item.name or ""] for item in cuts)

    def by_head(array: Any) -> Any:
        return array.reshape(2, seq, HEADS, -1).transpose(0, 2, 1, 3) if array.ndim == 3 else array

    actual = attention.run(by_head(query), key, value, given["attention_mask"])
    np.testing.assert_allclose(actual, by_head(output), rtol=1e-5, atol=1e-6)


def signatures(arithmetic: Arithmetic) -> list[str]:
    model = arithmetic.model()
    return [cut(model, layer).signature for layer in range(arithmetic.layers)]


def floats(**numbers: float) -> dict[str, Any]:
    return {name: np.float32(number) for name, number in numbers.items()}


EQUAL = {
    "all": Arithmetic(layers=2),
    "constants of other names": Arithmetic(
        layers=2, scores="scored{i} = Mul(product{i}, own{i})", constants=floats(own0=0.5, own1=0.5)
    ),
}
DIFFERENT = {
    "constants": Arithmetic(
        layers=2, scores="scored{i} = Mul(product{i}, own{i})", constants=floats(own0=0.5, own1=0.25)
    ),
    "types of constants": Arithmetic(
        layers=2, scores="c{i} = Cast<to=1>(own{i})\n scored{i} = Mul(product{i}, c{i})",
        constants={"own0": np.asarray([0, 1], np.int32)[1], "own1": np.asarray([1, 0], np.float32)[0]},
    ),
    "attributes": Arithmetic(
        layers=2, scores="c{i} = Constant<value_float=0.2{i}>()\n scored{i} = Mul(product{i}, c{i})"
    ),
    "the order of inputs": Arithmetic(
        layers=2, scores="c{i} = Sub(low{i}, high{i})\n scored{i} = Mul(product{i}, c{i})",
        constants=floats(low0=0.5, high0=0.25, low1=0.25, high1=0.5),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", EQUAL)
def test_equal_signatures(name: str) -> None:
    first, second = signatures(EQUAL[name])
    assert first == second


@pytest.mark.parametrize("name", DIFFERENT)
def test_what_tells_layers_apart(name: str) -> None:
    first, second = signatures(DIFFERENT[name])
    assert first != second


def test_heads_tell_layers_apart() -> None:
    """Of one key for all heads and of a key for each, the same nodes."""
    assert len({*signatures(Arithmetic()), *signatures(Arithmetic(kv_heads=1))}) == 2


def test_lengths_are_small_integers_and_sizes_of_tables() -> None:
    numbers = {"window": 77, "pair": [201, 202], "table": np.zeros((63, 65), np.float32), "half": np.float32(33)}
    numbers["list"] = list(range(1000, 1009))
    used = "".join(f"u{n}{{i}} = Cast<to=1>({n})\n s{n}{{i}} = ReduceSum<keepdims=0>(u{n}{{i}})\n" for n in numbers)
    last, sums = "scored{i}", ""
    for name in numbers:
        sums += f"a{name}{{i}} = Add({last}, s{name}{{i}})\n"
        last = f"a{name}{{i}}"
    attention = cut(Arithmetic(bias=f"{used}{sums}biased{{i}} = Identity({last})", constants=numbers).model())
    lengths = attention.lengths()
    assert {77, 201, 202, 63, 65, 9} <= lengths
    assert not lengths & {33, *numbers["list"]}


def test_a_weight_that_is_too_large_to_be_a_constant(monkeypatch: pytest.MonkeyPatch) -> None:
    table = draw(20, 50)
    arithmetic = Arithmetic(
        bias="sum{i} = ReduceSum<keepdims=0>(table)\n biased{i} = Add(scored{i}, sum{i})", constants={"table": table}
    )
    monkeypatch.setattr("llmc.passes.attention.extract_attention.LARGEST", table.nbytes)
    assert "table" in {value.name for value in cut(arithmetic.model()).part.constants}
    monkeypatch.setattr("llmc.passes.attention.extract_attention.LARGEST", table.nbytes - 1)
    with pytest.raises(NearMiss, match="it depends on the weight table"):
        cut(arithmetic.model())


BRANCH = """yes{i} = Greater(seq, zero)
    extra{i} = If(yes{i}) <then_branch = then () => (float e) {{ e = Constant<value_float=1.0>() }},
        else_branch = other () => (float f) {{ f = Constant<value_float=2.0>() }}>
    biased{i} = Add(scored{i}, extra{i})"""


@pytest.mark.parametrize(
    ("arithmetic", "reason"),
    [
        (
            Arithmetic(bias=BRANCH),
            "it depends on If, which cannot be computed here",
        ),
        (
            Arithmetic(bias="gate{i} = ReduceMean<keepdims=1>(x)\n biased{i} = Mul(scored{i}, gate{i})"),
            "it depends on the input x",
        ),
        (
            Arithmetic(mask="masked{i} = Add(additive, none)"),
            "its values are not weighted by the products of its queries and keys",
        ),
    ],
    ids=["a branch", "hidden states", "without scores"],
)
def test_what_cannot_be_cut_out(arithmetic: Arithmetic, reason: str) -> None:
    with pytest.raises(NearMiss, match=f"^{reason}$"):
        cut(arithmetic.model())
