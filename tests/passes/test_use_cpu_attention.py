from __future__ import annotations

import onnx_ir as ir
import pytest

from llmc.passes.use_cpu_attention import UseCpuAttention

from .graphs import apply, draw, left_alone, node_of, parse

HEADS, KV_HEADS = 4, 2
EXTRA = ("position_ids", "bias", "sink", "k_scale", "v_scale", "q_norm", "k_norm")
"""The operator's inputs 9 to 15, which the kernel does not take."""


def make(
    options: str = "", *, head: int = 64, present: str = "capacity", packed: bool = False, rotary: bool = True,
    extra: tuple[str, ...] = (), domain: str = "com.microsoft",
) -> ir.Model:  # fmt: skip
    """com.microsoft's operator over a cache of ``capacity`` slots."""
    kinds = {
        "q": f"float[b, s, {(HEADS + 2 * KV_HEADS if packed else HEADS) * head}]",
        **({} if packed else dict.fromkeys("kv", f"float[b, s, {KV_HEADS * head}]")),
        **{f"past_{name}": f"float[b, {KV_HEADS}, capacity, {head}]" for name in "kv"},
        "last": "int32[b]",
        "total": "int32",
        "chunk": "int32[b]",
        **(dict.fromkeys(extra, "float[n]")),
    }
    given = ["q", *(["", ""] if packed else "kv"), "past_k", "past_v", "last", "total"]
    given += ["cos", "sin"] if rotary else ["", ""]
    given += [*(name if name in extra else "" for name in EXTRA), "chunk"]
    cache = f"float[b, {KV_HEADS}, {present}, {head}]"
    return parse(
        f"""m ({", ".join(f"{kind} {name}" for name, kind in kinds.items())}) => (y, {cache} pk, {cache} pv) {{
        y, pk, pv = {domain}.GroupQueryAttention<num_heads={HEADS}, kv_num_heads={KV_HEADS}{options}>(
            {", ".join(given)}) }}""",
        {"cos": draw(8, head // 2), "sin": draw(8, head // 2)},
    )


def test_the_call() -> None:
    model = make(", scale=0.3, local_window_size=7, do_rotary=1")
    tally = apply(UseCpuAttention(), model)
    assert tally.fired == tally.expected == {"attention": 1}
    node = node_of(model, "GroupQueryAttention")
    assert node.domain == "llmc.cpu"
    assert model.graph.opset_imports["llmc.cpu"] == 1
    assert {name: attribute.value for name, attribute in node.attributes.items()} == {
        "num_heads": HEADS,
        "kv_num_heads": KV_HEADS,
        "local_window_size": 7,
        "scale": pytest.approx(0.3),
    }
    assert [value.name if value is not None else None for value in node.inputs] == [
        *("q", "k", "v", "past_k", "past_v", "last", "chunk", "cos", "sin")
    ]
    assert [value.name for value in node.outputs] == ["y", "pk", "pv"]


def test_what_is_absent() -> None:
    model = make(packed=True, rotary=False)
    apply(UseCpuAttention(), model)
    node = node_of(model, "GroupQueryAttention")
    assert [value.name if value is not None else None for value in node.inputs] == [
        *("q", None, None, "past_k", "past_v", "last", "chunk")
    ]


@pytest.mark.parametrize(
    ("options", "name", "expected"),
    [
        ("", "local_window_size", 0),
        (", local_window_size=-1", "local_window_size", 0),
        (", local_window_size=1", "local_window_size", 1),
        ("", "scale", 0.125),
        (", scale=0.0", "scale", 0.125),
    ],
)
def test_what_is_not_stated_means_what_it_does_to_the_runtime(options: str, name: str, expected: float) -> None:
    """No window, and one over the root of a head's size, 64."""
    model = make(options)
    apply(UseCpuAttention(), model)
    assert node_of(model, "GroupQueryAttention").attributes[name].value == expected


@pytest.mark.parametrize("head", [32, 96, 256])
def test_sizes_of_heads(head: int) -> None:
    assert apply(UseCpuAttention(), make(head=head)).fired == {"attention": 1}


@pytest.mark.parametrize("name", EXTRA)
def test_an_input_that_the_kernel_does_not_take(name: str) -> None:
    assert left_alone(UseCpuAttention(), make(extra=(name,))) == [f"the kernel does not take {name}"]


def test_an_input_beyond_those_that_are_known() -> None:
    model = make()
    node = node_of(model, "GroupQueryAttention")
    node.resize_inputs(18)
    node.replace_input_with(17, node.inputs[0])
    assert left_alone(UseCpuAttention(), model) == ["the kernel does not take q"]


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (make(", softcap=50.0"), "the kernel has no softcap"),
        (make(", rotary_interleaved=1"), "the kernel rotates halves, not neighbours"),
        *(
            (make(head=head), f"the kernel takes head sizes that are multiples of 32 up to 256, not {head}")
            for head in (16, 80, 288)
        ),
    ],
    ids=["softcap", "interleaved", "small head", "odd head", "large head"],
)
def test_near_misses(model: ir.Model, reason: str) -> None:
    assert left_alone(UseCpuAttention(), model) == [reason]
    assert UseCpuAttention()(model).tally.expected == {"attention": 1}


def test_a_cache_that_grows_is_no_site() -> None:
    model = make(present="total")
    assert left_alone(UseCpuAttention(), model) == []
    assert not UseCpuAttention()(model).tally.expected


def test_an_operator_of_another_domain_is_no_site() -> None:
    assert left_alone(UseCpuAttention(), make(domain="llmc")) == []
