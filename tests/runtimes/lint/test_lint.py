from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.runtimes.lint.lint import RULES, Finding, LintReport, lint_file
from llmc.runtimes.lint.tables.function_trap import call, inlined
from llmc.runtimes.lint.tables.table import targets
from llmc.runtimes.lint.tables.trap_rules import CALL, SHORT_CALL

from .lint_models import LENGTHS, MASKED, gqa, save

Lint = Callable[[str, str], LintReport]
RTX, TRT, OPENVINO, ORT = "tensorrt-rtx-1.7", "tensorrt-11", "openvino-2026", "ort-1.24"


@pytest.fixture
def lint(tmp_path: Path) -> Lint:
    return lambda text, target: lint_file(save(text, tmp_path / "model.onnx"), target)


def outcomes(report: LintReport) -> dict[str, str]:
    return {finding.rule: finding.outcome for finding in report.findings}


@pytest.mark.parametrize("target", [RTX, TRT])
def test_lengths_that_the_parser_drops(lint: Lint, target: str) -> None:
    report = lint(LENGTHS, target)
    assert outcomes(report) == {"attention-lengths": "wrong"}
    (finding,) = report.findings
    assert (finding.node, finding.operator, finding.inside) == ("attention", "Attention", "")
    assert "nonpad_kv_seqlen" in finding.message
    assert "attn_mask" in finding.advice
    assert bool(finding.source) == (target == TRT)
    assert report.has("wrong")
    assert not report.has("refused")


def test_the_same_with_a_mask_runs(lint: Lint) -> None:
    report = lint(MASKED, RTX)
    assert report.findings == ()
    assert report.counts == {"wrong": 0, "refused": 0, "slow": 0, "runs": 1, "unknown": 0}


def test_group_query_attention_on_openvino(lint: Lint) -> None:
    report = lint(gqa(), OPENVINO)
    assert outcomes(report) == {"gqa-batch": "wrong", "gqa-symbolic-buffer": "wrong"}
    assert [node.verdict for node in report.nodes] == ["wrong"]
    assert lint(gqa("1", "past", "total"), OPENVINO).findings == ()
    assert outcomes(lint(gqa("2", "past", "total"), OPENVINO)) == {"gqa-static-batch": "refused"}


def test_group_query_attention_elsewhere(lint: Lint) -> None:
    assert lint(gqa(), ORT).findings == ()
    (finding,) = lint(gqa(), TRT).findings
    assert (finding.outcome, finding.rule) == ("refused", "operator")
    assert "com.microsoft::GroupQueryAttention" in finding.message


@pytest.mark.parametrize("target", [RTX, TRT])
def test_softcap(lint: Lint, target: str) -> None:
    report = lint(MASKED.replace("Attention(", "Attention<softcap = 30.0>("), target)
    assert outcomes(report) == {"attention-softcap": "refused"}
    assert lint(MASKED.replace("Attention(", "Attention<softcap = 0.0>("), target).findings == ()


@pytest.mark.parametrize("target", [RTX, TRT])
def test_values_of_another_width_than_keys(lint: Lint, target: str) -> None:
    text = MASKED.replace("float16[1, 2, 8, 16] v", "float16[1, 2, 8, 8] v").replace("2, 16] y", "2, 8] y")
    assert outcomes(lint(text, target)) == {"attention-value-width": "refused"}
    assert lint(text, OPENVINO).findings == ()


def int4_model(path: Path, dtype: object, zero: int | None) -> Path:
    """``MatMul(x, DequantizeLinear(weight))`` in blocks of 32."""
    weights = {
        "w": np.ones((64, 32), dtype),  # type: ignore[call-overload]
        "s": np.ones((2, 32), np.float16),
    }
    if zero is not None:
        weights["z"] = np.full((2, 32), zero).astype(dtype)  # type: ignore[call-overload]
    nodes = [
        helper.make_node("DequantizeLinear", list(weights), ["d"], name="dequantize", axis=0, block_size=32),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="matmul"),
    ]
    graph = helper.make_graph(
        nodes,
        "int4",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, ["n", 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, ["n", 32])],
        initializer=[numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 24)], ir_version=10), path)
    return path


@pytest.mark.parametrize("target", [RTX, TRT])
def test_four_bit_weights(tmp_path: Path, target: str) -> None:
    def rules(dtype: object, zero: int | None) -> set[str]:
        return set(outcomes(lint_file(int4_model(tmp_path / "m.onnx", dtype, zero), target)))

    assert rules(ml_dtypes.int4, None) == set()
    assert rules(ml_dtypes.int4, 0) == set()
    assert rules(ml_dtypes.int4, 1) == {"dequantize-int4-zero-point"}
    assert {"dequantize-int4-unsigned", "dequantize-int4-zero-point"} <= rules(ml_dtypes.uint4, 8)


def test_an_embedding_table_that_is_the_head_too(lint: Lint) -> None:
    """ONNX Runtime 1.24 opens it without its optimizations only."""
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (int8[8, 4] w, float[8] s, int8[8] z, float[2, 4] x) => (float[2, 8] y)
    { [dequantize] d = DequantizeLinear<axis = 0>(w, s, z)  t = Transpose<perm = [1, 0]>(d)  y = MatMul(x, t) }"""
    assert lint(text, ORT).findings == ()
    assert outcomes(lint(text.replace("(w, s, z)", "(w, s)"), ORT)) == {"dequantize-int8-transposed": "refused"}


def test_the_opset(lint: Lint) -> None:
    text = '<ir_version: 10, opset_import: ["" : {}]> g (float[2] x) => (float[2] y) {{ y = Relu(x) }}'
    assert outcomes(lint(text.format(26), ORT)) == {"opset": "refused"}
    assert lint(text.format(25), ORT).findings == ()
    assert outcomes(lint(text.format(8), TRT)) == {"opset": "refused"}
    new = text.replace("ir_version: 10", "ir_version: 99").format(25)
    (finding,) = lint(new, ORT).findings
    assert (finding.rule, finding.node) == ("ir-version", "")
    assert "ir_version=" in finding.advice


def test_an_operator_that_a_release_has_not(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 24]>
    g (float[1, 2, 8, 4] past, float[1, 2, 1, 4] new, int64[1] at) => (float[1, 2, 8, 4] present)
    { [append] present = TensorScatter(past, new, at) }"""
    assert outcomes(lint(text, ORT)) == {"operator": "refused"}
    assert lint(text, "ort-1.32").findings == ()


def test_what_came_to_an_operator_later(lint: Lint) -> None:
    missing = ', ""' * 9
    later = (
        gqa()
        .replace("int32 total)", "int32 total, int32[batch] queries)")
        .replace("seqlens, total)", f"seqlens, total{missing}, queries)")
    )
    assert outcomes(lint(later, ORT)) == {"signature": "refused"}
    assert lint(later, "ort-1.32").findings == ()
    (finding,) = lint(gqa().replace("kv_num_heads = 2", "kv_num_heads = 2, tomorrow = 1"), ORT).findings
    assert "no attribute tomorrow" in finding.message


def test_types(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (TYPE[2, 2] x) => (TYPE[2, 2] y) { [product] y = MatMul(x, x) }"""
    assert outcomes(lint(text.replace("TYPE", "bfloat16"), ORT)) == {"element-type": "refused"}
    assert outcomes(lint(text.replace("TYPE", "float16"), ORT)) == {"type-conversion": "slow"}
    assert lint(text.replace("TYPE", "float"), ORT).findings == ()
    assert lint(text.replace("TYPE", "bfloat16"), RTX).findings == ()


def test_an_input_that_must_be_constant(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[2, 2] x, int64[1] given) => (y) <int64[1] one = {1}> { axes = Neg(AXES) [sum] y = ReduceSum(x, axes) }"""
    (finding,) = lint(text.replace("AXES", "given"), RTX).findings
    assert (finding.rule, finding.outcome, finding.node) == ("constant-input", "refused", "sum")
    assert lint(text.replace("AXES", "one"), RTX).findings == ()


def test_a_use_that_is_refused(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[1, 1, 8, 8] x) => (y) { [pool] y = MaxPool<kernel_shape = [2, 2], dilations = [2, 2]>(x) }"""
    (finding,) = lint(text, RTX).findings
    assert (finding.rule, finding.outcome) == ("use", "refused")
    assert "dilations" in finding.message


def test_a_cache_that_grows_is_slow(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (float[1, 2, past, 4] before, float[1, 2, 1, 4] new) => (float[1, 2, total, 4] present)
    { [append] present = Concat<axis = 2>(before, new) }"""
    report = lint(text, ORT)
    assert outcomes(report) == {"cache-grows": "slow"}
    assert lint(text, OPENVINO).findings == ()  # it keeps such a cache in a state of its own
    assert not report.has("wrong")
    assert not report.has("refused")


def test_subgraphs(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23]>
    g (bool flag, float[2] x) => (y)
    { [choice] y = If<then_branch = t () => (a) { [inner] a = acme.Magic(x) },
                      else_branch = e () => (b) { [other] b = Identity(x) }>(flag) }"""
    report = lint(text.replace('"" : 23', '"" : 23, "acme" : 1'), OPENVINO)
    (finding,) = report.findings
    assert (finding.node, finding.operator, finding.inside) == ("inner", "acme::Magic", "then_branch of choice")
    assert {node.inside for node in report.nodes} == {"", "then_branch of choice", "else_branch of choice"}


FUNCTION = """<ir_version: 10, opset_import: ["" : 24, "acme" : 1]>
g (float16[1, 4, 2, 16] q, float16[1, 2, 8, 16] k, float16[1, 2, 8, 16] v, int64[1] n) => (float16[1, 4, 2, 16] y)
{ [first] a = acme.Attend(q, k, v, n)  [between] b = Relu(a)  [second] y = acme.Attend(b, k, v, n) }
<domain: "acme", opset_import: ["" : 24]> Attend (q, k, v, n) => (o)
{ [inner] h = Attention(q, k, v, "", "", "", n)  o = Identity(h) }"""


def test_bodies_of_functions(lint: Lint) -> None:
    report = lint(FUNCTION, RTX)
    assert [(item.rule, item.inside) for item in report.findings] == [
        ("attention-lengths", "body of first"),
        ("attention-lengths", "body of second"),
    ]
    assert [node.inside for node in report.nodes] == [*["body of first"] * 2, "", *["body of second"] * 2]
    assert [node.node for node in report.nodes][2] == "between"


def test_a_function_of_another_opset_is_looked_into_once(lint: Lint) -> None:
    text = FUNCTION.replace('opset_import: ["" : 24]> Attend', 'opset_import: ["" : 23]> Attend').replace(
        'v, "", "", "", n)', "v)"
    )
    text = text.replace("h = Attention(", "h = Attention<softcap = 5.0>(")
    report = lint(text, RTX)
    assert outcomes(report) == {"attention-softcap": "refused"}
    assert {item.inside for item in report.findings} <= {"body of function Attend", "body of first", "body of second"}


@pytest.mark.parametrize("target", [RTX, TRT])
def test_a_call_without_the_last_inputs(tmp_path: Path, target: str) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(call(short=True).model, path)
    (finding,) = lint_file(path, target).findings
    assert (finding.outcome, finding.rule, finding.node) == ("refused", SHORT_CALL, "call")
    assert lint_file(path, ORT).findings == ()
    onnx.save(call(short=False).model, path)
    assert lint_file(path, target).findings == ()


def test_functions_are_not_taken_by_openvino(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    onnx.save(call(short=False).model, path)
    report = lint_file(path, OPENVINO)
    assert [(item.outcome, item.rule, item.node) for item in report.findings] == [("refused", CALL, "call")]
    assert "inline" in report.findings[0].advice
    onnx.save(inlined().model, path)
    assert lint_file(path, OPENVINO).findings == ()


def test_an_operator_nobody_knows(lint: Lint) -> None:
    text = '<ir_version: 10, opset_import: ["" : 23, "acme" : 1]> g (float[2] x) => (y) { y = acme.Magic(x) }'
    for target in targets():
        (finding,) = lint(text, target).findings
        assert (finding.rule, finding.node) == ("operator", "y")
        assert "function" in finding.advice


def test_what_the_table_does_not_know_is_said(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 23, "com.microsoft" : 1]>
    g (float[2] x) => (y) { y = com.microsoft.NotYetInvented(x) }"""
    report = lint(text, ORT)
    assert report.findings == ()
    assert report.unknown == ("com.microsoft::NotYetInvented",)
    assert report.counts["unknown"] == 1


def test_findings_that_say_the_same_are_one_group(lint: Lint) -> None:
    (group,) = lint(FUNCTION, RTX).groups()
    assert (group.count, group.operators, len(group.nodes)) == (2, ("Attention",), 2)


def test_the_worst_comes_first(lint: Lint) -> None:
    text = """<ir_version: 10, opset_import: ["" : 24, "acme" : 1]>
    g (float16[1, 4, 2, 16] q, float16[1, 2, p, 16] k, float16[1, 2, 8, 16] v, int64[1] n)
    => (y, m, float16[1, 2, t, 16] o)
    { o = Concat<axis = 2>(k, k)  m = acme.Magic(q)  y = Attention(q, v, v, "", "", "", n) }"""
    assert [item.outcome for item in lint(text, RTX).findings] == ["wrong", "refused", "slow"]


def test_weights_outside_are_not_opened(tmp_path: Path) -> None:
    weight = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1000, 1000])
    weight.data_location = TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="missing.data")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"], name="product")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 1000])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 1000])],
        initializer=[weight],
    )
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    assert lint_file(path, ORT).counts["runs"] == 1


def test_the_rules_have_names(lint: Lint) -> None:
    finding: Finding
    for finding in lint(FUNCTION, RTX).findings:
        assert finding.rule not in RULES
    assert all(text.endswith(".") for text in RULES.values())


def test_bad_input(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="does not exist"):
        lint_file(tmp_path / "none.onnx", ORT)
    with pytest.raises(ArtifactError, match="is a directory"):
        lint_file(tmp_path, ORT)
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(ArtifactError, match="cannot be read as an ONNX model"):
        lint_file(tmp_path / "text.onnx", ORT)
    (tmp_path / "empty.onnx").write_bytes(b"")
    with pytest.raises(ArtifactError, match="is not an ONNX model with nodes"):
        lint_file(tmp_path / "empty.onnx", ORT)
    with pytest.raises(UsageError, match="is not known"):
        lint_file(save(MASKED, tmp_path / "m.onnx"), "tensorrt-3")
