"""Each of lint's rules on a table that is made for it, so that it alone speaks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.lint import lint as lint_module
from llmc.runtimes.lint.lint import LintReport, lint_file
from llmc.runtimes.lint.tables.table import Condition, OperatorRow, Signature, TargetTable, TrapRow, VersionRow
from llmc.runtimes.lint.tables.trap_rules import CALL, SHORT_CALL

from .lint_models import LENGTHS, save

TABLE = TargetTable(
    schema_version=1,
    target="target-1",
    title="Target 1",
    tool="tool",
    recorded="2026-01-01",
    evidence="Asked.",
    lowest_opset=8,
    highest_opset=24,
    highest_ir=10,
    operators={},
    absent=(),
    traps={},
)
FLOAT = OperatorRow((VersionRow(1, ("float32",)),))
Lint = Callable[..., LintReport]


@pytest.fixture
def lint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lint:
    """Look at a model given as text, by a table with these operators."""

    def look(text: str, operators: Mapping[str, OperatorRow], **table: Any) -> LintReport:
        changed = replace(TABLE, operators=operators, **table)
        monkeypatch.setattr(lint_module, "load_table", lambda target: changed)
        return lint_file(save(text, tmp_path / "model.onnx"), "target-1")

    return look


def model(body: str, *, inputs: str = "float[2] x", outputs: str = "y", opset: int = 23, ir: int = 10) -> str:
    domains = f'"" : {opset}, "acme" : 1, "com.microsoft" : 1'
    return f"<ir_version: {ir}, opset_import: [{domains}]> g ({inputs}) => ({outputs}) {{ {body} }}"


def said(report: LintReport) -> list[tuple[str, str]]:
    return [(finding.outcome, finding.rule) for finding in report.findings]


RELU = "y = Relu(x)"
ROWS = {"Relu": FLOAT}

# --- the file -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("opset", "ir", "rule", "advice"),
    [
        (8, 10, None, ""),
        (24, 10, None, ""),
        (23, 9, None, ""),
        (7, 10, "opset", "export the model with opset 8 or newer"),
        (25, 10, "opset", "export the model with opset 24"),
        (23, 11, "ir-version", "save the model with ir_version=10"),
    ],
)
def test_versions_at_the_ends_of_what_is_taken(
    lint: Lint, opset: int, ir: int, rule: str | None, advice: str
) -> None:
    report = lint(model(RELU, opset=opset, ir=ir), ROWS)
    assert [(item.outcome, item.rule, item.advice) for item in report.findings] == (
        [("refused", rule, advice)] if rule else []
    )


CALLS = """<ir_version: 10, opset_import: ["" : 23, "acme" : 1]>
g (float[2] x) => (y) { [whole] a = acme.Twice(x, x)  [short] y = acme.Twice(a) }
<domain: "acme", opset_import: ["" : 23]> Twice (p, q) => (r) { r = Relu(p) }"""


@pytest.mark.parametrize(
    ("traps", "found"),
    [
        ({}, []),
        ({CALL: "runs", SHORT_CALL: "runs"}, []),
        ({SHORT_CALL: "refused"}, [("refused", SHORT_CALL, "short")]),
        ({CALL: "slow"}, [("slow", CALL, "whole"), ("slow", CALL, "short")]),
        ({CALL: "slow", SHORT_CALL: "refused"}, [("slow", CALL, "whole"), ("slow", CALL, "short")]),
    ],
    ids=["not asked", "run", "short ones", "all", "all, once each"],
)
def test_calls_of_functions(lint: Lint, traps: dict[str, Any], found: list[tuple[str, str, str]]) -> None:
    rows = {name: TrapRow(outcome, "runs", source="its manual") for name, outcome in traps.items()}
    report = lint(CALLS, ROWS, traps=rows)
    assert [(item.outcome, item.rule, item.node) for item in report.findings] == found
    assert {item.source for item in report.findings} <= {"its manual"}
    assert [(node.verdict, node.inside) for node in report.nodes] == [
        ("runs", "body of whole"),
        ("runs", "body of short"),
    ], "the bodies, not the calls"


def test_a_call_that_is_left_in_place_runs(lint: Lint) -> None:
    """A function of other operator versions is not inlined; it is no operator that nobody knows."""
    report = lint(CALLS.replace('opset_import: ["" : 23]> Twice', 'opset_import: ["" : 22]> Twice'), ROWS)
    assert report.unknown == ()
    assert [node.verdict for node in report.nodes] == ["runs"] * 3


# --- operators ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("operator", "absent", "verdict"),
    [
        ("Relu", (), "unknown"),
        ("Relu", ("Relu",), "refused"),
        ("com.microsoft.Gelu", (), "unknown"),
        ("com.microsoft.Gelu", ("com.microsoft::Gelu",), "refused"),
        ("acme.Magic", (), "refused"),
    ],
)
def test_an_operator_without_a_row(lint: Lint, operator: str, absent: tuple[str, ...], verdict: str) -> None:
    """Of domains that some target has operators of, silence means nothing; other domains are the model's own."""
    report = lint(model(f"y = {operator}(x)"), {}, absent=absent)
    assert [node.verdict for node in report.nodes] == [verdict]
    assert said(report) == ([("refused", "operator")] if verdict == "refused" else [])
    label = operator.replace(".Gelu", "::Gelu").replace("acme.", "acme::")
    assert report.unknown == ((label,) if verdict == "unknown" else ())
    for finding in report.findings:
        assert finding.message == f"Target 1 has no operator {label}"
        assert ("with a body" in finding.advice) == ("::" in label)


def test_operators_that_nobody_knows_are_named_once(lint: Lint) -> None:
    report = lint(model("a = Tanh(x) b = Relu(a) y = Relu(b)"), {})
    assert report.unknown == ("Relu", "Tanh")
    assert report.counts == {"wrong": 0, "refused": 0, "slow": 0, "runs": 0, "unknown": 3}
    assert report.to_json()["unknown"] == ["Relu", "Tanh"]


@pytest.mark.parametrize(
    ("versions", "found"),
    [
        ((VersionRow(1, ("float32",)), VersionRow(14, (), message="no kernel")), [("refused", "operator")]),
        ((VersionRow(1, (), message="no kernel"), VersionRow(14, ("float32",))), []),
        ((VersionRow(1, (), message="no kernel"),), [("refused", "operator")]),
        ((VersionRow(14, ()),), []),
        ((VersionRow(20, (), message="a later one"),), []),
    ],
    ids=["its own", "an older one", "the newest older one", "no deciding type", "a newer one"],
)
def test_the_row_of_an_operators_version(
    lint: Lint, versions: tuple[VersionRow, ...], found: list[tuple[str, str]]
) -> None:
    """Relu of opset 23 is that of 14."""
    report = lint(model(RELU), {"Relu": OperatorRow(versions)})
    assert said(report) == found
    for finding in report.findings:
        assert finding.message == "Target 1 does not take Relu of version 14: no kernel"


def test_a_version_that_is_not_taken_is_all_that_is_said(lint: Lint) -> None:
    row = OperatorRow((VersionRow(1, (), message="no kernel"),), conditions=(Condition("wrong", (), "", "off"),))
    assert said(lint(model(RELU), {"Relu": row})) == [("refused", "operator")]


@pytest.mark.parametrize(
    ("body", "signature", "message"),
    [
        ("y = com.microsoft.Op<a = 1>(x, x)", Signature(2, 1, ("a", "b")), None),
        ("y = com.microsoft.Op(x, x, x, x)", Signature(0, 0, ()), None),
        ("y = com.microsoft.Op(x, x)", Signature(1, 3, ()), "knows 1 inputs of com.microsoft::Op, the node has 2"),
        ("y, z = com.microsoft.Op(x)", Signature(3, 1, ()), "knows 1 outputs of com.microsoft::Op, the node has 2"),
        ("y = com.microsoft.Op<c = 1>(x)", Signature(1, 1, ("a",)), "knows no attribute c of com.microsoft::Op"),
    ],
)
def test_signatures(lint: Lint, body: str, signature: Signature, message: str | None) -> None:
    """0: any number; what is known and not given is no fault."""
    report = lint(model(body), {"com.microsoft::Op": replace(FLOAT, signature=signature)})
    assert [item.message for item in report.findings] == ([f"Target 1 {message}"] if message else [])
    assert {rule for _, rule in said(report)} <= {"signature"}


@pytest.mark.parametrize(
    ("inputs", "version", "found"),
    [
        ("float[2] x", VersionRow(1, ("float16", "float32")), []),
        ("double[2] x", VersionRow(1, ("float16", "float32")), [("refused", "element-type")]),
        ("double[2] x", VersionRow(1, ()), []),
        (
            "float16[2] x",
            VersionRow(1, ("float16", "float32"), converted=("float16",)),
            [("slow", "type-conversion")],
        ),
        ("float16[2] x", VersionRow(1, ("float16", "float32"), expanded=("float16",)), [("slow", "no-kernel")]),
        ("float[2] x", VersionRow(1, ("float16", "float32"), ("float16",), ("float16",)), []),
        ("double[2] x", VersionRow(1, ("float32",), converted=("double",)), [("refused", "element-type")]),
    ],
)
def test_element_types(lint: Lint, inputs: str, version: VersionRow, found: list[tuple[str, str]]) -> None:
    report = lint(model(RELU, inputs=inputs), {"Relu": OperatorRow((version,))})
    assert said(report) == found
    for finding in report.findings:
        if finding.rule == "element-type":
            types = ", ".join(version.takes)
            assert finding.message == f"Target 1 takes Relu of {types}, not of float64"
            assert finding.advice == f"cast to {version.takes[0]} before the node and back after it"


def test_a_type_that_is_not_known_is_not_judged(lint: Lint) -> None:
    rows = {"com.microsoft::Op": FLOAT, "Relu": OperatorRow((VersionRow(1, ("float16",)),))}
    assert said(lint(model("h = com.microsoft.Op(x) y = Relu(h)"), rows)) == []


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("y = com.microsoft.Op(x, one, one)", []),
        ("n = Neg(one) m = Neg(n) y = com.microsoft.Op(x, m, one)", []),
        ('y = com.microsoft.Op(x, "", one)', []),
        ("y = com.microsoft.Op(x)", []),
        ("y = com.microsoft.Op(one, x, one)", ["wants a constant as input 1 of com.microsoft::Op"]),
        ("y = com.microsoft.Op(x, one, x)", ["wants a constant as input 2 of com.microsoft::Op"]),
        ("n = Add(x, one) y = com.microsoft.Op(x, one, n)", ["wants a constant as input 2 of com.microsoft::Op"]),
    ],
)
def test_inputs_that_must_be_constants(lint: Lint, body: str, found: list[str]) -> None:
    """What is computed of constants alone is one."""
    text = model(body, inputs="float[1] x").replace("=> (y)", "=> (y) <float[1] one = {1}>")
    report = lint(text, {"com.microsoft::Op": replace(FLOAT, constants=(1, 2)), "Neg": FLOAT, "Add": FLOAT})
    assert [item.message for item in report.findings] == [f"Target 1 {message}" for message in found]
    assert set(said(report)) <= {("refused", "constant-input")}


# --- uses and traps -------------------------------------------------------------------------------------------------

CLIP = "y = Clip(x, low, high)"
LIMITS = "float[2] x, float low, float high"


@pytest.mark.parametrize(
    ("body", "unread", "found"),
    [
        (CLIP, ("max",), ["max"]),
        (CLIP, ("min", "max"), ["min", "max"]),
        ("y = Clip(x, low)", ("max",), []),
        ('y = Clip(x, "", high)', ("min",), []),
    ],
)
def test_inputs_that_are_accepted_and_not_read(
    lint: Lint, body: str, unread: tuple[str, ...], found: list[str]
) -> None:
    report = lint(model(body, inputs=LIMITS), {"Clip": replace(FLOAT, unread=unread, source="its manual")})
    assert [item.message for item in report.findings] == [
        f"Target 1 accepts the input {name} of Clip and does not read it" for name in found
    ]
    assert set(said(report)) <= {("wrong", "unread-input")}
    assert {item.source for item in report.findings} <= {"its manual"}


def condition(outcome: Any, *features: str) -> Condition:
    return Condition(outcome, features, "", "as it was seen")


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ([condition("refused", "input max")], ["does not take Clip with input max"]),
        ([condition("wrong", "input max")], ["computes other numbers for Clip with input max"]),
        ([condition("refused", "input max", "T=float32")], ["does not take Clip with input max, T=float32"]),
        ([condition("refused", "input max", "T=float16")], []),
        ([condition("refused")], ["does not take Clip with any use"]),
        (
            [condition("refused", "input max"), condition("refused", "input min")],
            ["does not take Clip with input max", "does not take Clip with input min"],
        ),
    ],
)
def test_a_use_is_all_of_its_features(lint: Lint, conditions: list[Condition], found: list[str]) -> None:
    """And perhaps others beside them."""
    report = lint(model(CLIP, inputs=LIMITS), {"Clip": replace(FLOAT, conditions=tuple(conditions))})
    assert [item.message for item in report.findings] == [f"Target 1 {message}: as it was seen" for message in found]
    assert [item.outcome for item in report.findings] == [item.outcome for item in conditions][: len(found)]


ATTENTION = OperatorRow(
    (VersionRow(1, ("float16", "float32")),), conditions=(condition("refused", "input nonpad_kv_seqlen"),)
)


def trap(outcome: Any) -> TrapRow:
    return TrapRow(outcome, "runs", "off by 3", "its manual")


@pytest.mark.parametrize(
    ("traps", "found"),
    [
        ({"attention-lengths": "wrong"}, [("wrong", "attention-lengths")]),
        ({"attention-lengths": "runs"}, [("refused", "use")]),
        ({"attention-softcap": "wrong"}, [("refused", "use")]),
        ({"cache-grows": "wrong", "no-such-rule": "wrong"}, [("refused", "use")]),
        (
            {"attention-lengths": "slow", "attention-causal-lengths": "wrong"},
            [("wrong", "attention-causal-lengths"), ("slow", "attention-lengths")],
        ),
    ],
)
def test_a_trap_is_said_in_the_place_of_the_use(
    lint: Lint, traps: dict[str, str], found: list[tuple[str, str]]
) -> None:
    """Where the rule of a trap fits, is of this operator, and the target does not run it."""
    text = LENGTHS.replace("Attention(", "Attention<is_causal = 1>(")
    report = lint(text, {"Attention": ATTENTION}, traps={name: trap(outcome) for name, outcome in traps.items()})
    assert said(report) == found
    assert [node.verdict for node in report.nodes] == [found[0][0]], "the worst of several"
    if "attention-lengths" in traps and traps["attention-lengths"] == "wrong":
        (finding,) = report.findings
        assert finding.message == (
            "Attention takes lengths from nonpad_kv_seqlen: Target 1 runs it and is wrong (off by 3)"
        )
        assert finding.source == "its manual"


def test_another_operators_trap_is_none(lint: Lint) -> None:
    """Though its attribute has the same name."""
    rows = {"com.microsoft::Other": FLOAT}
    report = lint(
        model("y = com.microsoft.Other<softcap = 5.0>(x)"), rows, traps={"attention-softcap": trap("wrong")}
    )
    assert report.findings == ()


# --- nodes and order ------------------------------------------------------------------------------------------------


def test_nodes_have_names_and_places(lint: Lint) -> None:
    """Without a name of its own, a node is called like its first output that is there."""
    text = model('[own] a = Relu(x) b = Relu(a) "", c = com.microsoft.Two(b) y = Relu(c)')
    report = lint(text, {**ROWS, "com.microsoft::Two": FLOAT})
    assert [(node.node, node.inside) for node in report.nodes] == [("own", ""), ("b", ""), ("c", ""), ("y", "")]


def test_the_worst_comes_first_whatever_the_graphs_order(lint: Lint) -> None:
    rows = {
        "Clip": replace(FLOAT, conditions=(condition("refused"),)),
        "Relu": replace(FLOAT, conditions=(condition("wrong"),)),
        "Tanh": replace(FLOAT, conditions=(condition("slow"),)),
    }
    report = lint(model("a = Tanh(x) b = Clip(a) c = Relu(b) d = Clip(c) y = Tanh(d)"), rows)
    assert [(item.outcome, item.node) for item in report.findings] == [
        ("wrong", "c"),
        ("refused", "b"),
        ("refused", "d"),
        ("slow", "a"),
        ("slow", "y"),
    ]
