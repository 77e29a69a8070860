from __future__ import annotations

import onnx_ir as ir
import onnxruntime as ort

from llmc.compiler.graph.operators.domain import VERSION
from llmc.passes.cleanup.attach_bodies import AttachBodies

from ..graphs import apply, draw_all, left_alone, parse, run

CALL = "llmc.CachedAttention<num_heads=2, kv_num_heads=2, scale=0.5 {}>({}, pk, pv, mask{})"
TEXT = """m (float[b, s, 32] q, float[b, s, 96] qkv, float[b, 2, p, 16] pk, float[b, 2, p, 16] pv, int64[b, t] mask,
    float[2] sink) => (y1, y2, y3, y4) {{
    y1, k1, v1 = {}
    y2, k2, v2 = {}
    y3, k3, v3 = {}
    y4, k4, v4 = {}
}}"""


def make() -> ir.Model:
    plain, packed = CALL.format("", "q, q, q", ""), CALL.format("", "qkv, , ", "")
    return parse(TEXT.format(plain, packed, plain, CALL.format(", softcap=2.0", "q, q, q", ", , , , , , sink")))


def test_one_body_for_each_variant() -> None:
    model = make()
    assert apply(AttachBodies(), model).fired == {"bodies": 3}
    assert {identifier[2] for identifier in model.functions} == {"", "packed", "softcap_sinks"}
    assert [node.overload for node in model.graph] == ["", "packed", "", "softcap_sinks"]
    assert all(node.op_identifier() in model.functions for node in model.graph)


def test_the_domain_is_declared() -> None:
    model = make()
    del model.graph.opset_imports["llmc"]
    AttachBodies()(model)
    assert model.graph.opset_imports["llmc"] == VERSION


def test_the_graph_runs_as_it_is() -> None:
    model = make()
    sizes = {"q": (2, 3, 32), "qkv": (2, 3, 96), "pk": (2, 2, 4, 16), "pv": (2, 2, 4, 16), "sink": (2,)}
    feeds = draw_all(sizes)
    feeds["mask"] = draw_all({"mask": (2, 7)})["mask"].round().astype("int64") | 1
    wanted = run(model, feeds)
    apply(AttachBodies(), model)
    data = ir.to_proto(model).SerializeToString()
    session = ort.InferenceSession(data, providers=["CPUExecutionProvider"])
    for actual, name in zip(session.run(None, feeds), wanted, strict=True):
        assert abs(actual - wanted[name]).max() < 1e-5


def test_a_graph_without_calls_is_left_alone() -> None:
    assert left_alone(AttachBodies(), parse("m (float[n] x) => (y) { y = Tanh(x) }")) == []
