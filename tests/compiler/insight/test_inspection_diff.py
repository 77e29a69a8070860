"""How two inspections differ: each section alone, sides, order, passes by name, leaves of the manifest."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx_ir as ir
import pytest

from llmc.compiler.artifact.manifest import Manifest, PassRecord
from llmc.compiler.insight.decode_cost import DecodeCost
from llmc.compiler.insight.inspection import Inspection, OperatorCount, Port
from llmc.compiler.insight.inspection_diff import Change, InspectionDiff, diff_inspections, diff_paths
from llmc.compiler.insight.weight_census import WeightCensus, WeightGroup

LEFT = Inspection(
    path=Path("left"),
    graph=Path("left/model.onnx"),
    producer="",
    opset_imports={"ai.onnx": 23, "llmc": 1},
    functions=(),
    operators=(OperatorCount("ai.onnx", "MatMul", 3), OperatorCount("ai.onnx", "Add", 1)),
    weights=WeightCensus(
        by_kind=(WeightGroup("embedding", 2, 100), WeightGroup("norms", 5, 20)),
        by_dtype=(WeightGroup("FLOAT", 7, 120),),
        shared=(),
        tied_head=False,
    ),
    cost=DecodeCost(50, 1000, 200, 64, ()),
    inputs=(Port("x", "FLOAT", ("batch", 2)),),
    outputs=(Port("y", "FLOAT", ("batch", None)), Port("x", None, None)),
    manifest=None,
)


def change(**fields: Any) -> Inspection:
    return dataclasses.replace(LEFT, path=Path("right"), **fields)


def census(**fields: Any) -> WeightCensus:
    return dataclasses.replace(LEFT.weights, **fields)


def only(diff: InspectionDiff, section: str) -> list[tuple[str, Any, Any]]:
    """The changes of a section, apart from which, and from totals, nothing differs."""
    assert [name for name, changes in diff.sections.items() if changes and name != "totals"] == [section]
    assert not diff.same
    return [(item.name, item.left, item.right) for item in diff.sections[section]]


@pytest.mark.parametrize(
    ("fields", "section", "changes"),
    [
        (
            {"operators": (OperatorCount("llmc", "Add", 1), OperatorCount("ai.onnx", "MatMul", 2))},
            "operators",
            [("ai.onnx::MatMul", 3, 2), ("ai.onnx::Add", 1, 0), ("llmc::Add", 0, 1)],
        ),
        (
            {"weights": census(by_kind=(WeightGroup("norms", 5, 30), WeightGroup("head", 1, 90)))},
            "weights",
            [("embedding", 100, 0), ("norms", 20, 30), ("head", 0, 90)],
        ),
        ({"weights": census(by_kind=(WeightGroup("embedding", 9, 100), WeightGroup("norms", 1, 20)))}, None, []),
        (
            {"weights": census(by_dtype=(WeightGroup("FLOAT16", 7, 60),))},
            "dtypes",
            [("FLOAT", 120, 0), ("FLOAT16", 0, 60)],
        ),
        (
            {"opset_imports": {"com.microsoft": 1, "ai.onnx": 24}},
            "opsets",
            [("ai.onnx", 23, 24), ("llmc", 1, None), ("com.microsoft", None, 1)],
        ),
        (
            {"inputs": (Port("x", "FLOAT16", ("batch", 2)),)},
            "ports",
            [("input x", "FLOAT[batch, 2]", "FLOAT16[batch, 2]")],
        ),
        (
            {"outputs": (Port("y", "FLOAT", ("batch", 7)), Port("z", "FLOAT", ()))},
            "ports",
            [
                ("output y", "FLOAT[batch, ?]", "FLOAT[batch, 7]"),
                ("output x", "?[…]", None),
                ("output z", None, "FLOAT[]"),
            ],
        ),
    ],
    ids=["operators", "kinds", "the number of tensors", "types", "opsets", "inputs", "outputs"],
)
def test_each_section_alone(fields: Mapping[str, Any], section: str | None, changes: list[Any]) -> None:
    """In the order of the left side, then what only the right side has."""
    diff = diff_inspections(LEFT, change(**fields))
    assert (diff.left, diff.right) == (Path("left"), Path("right"))
    if section is None:
        assert diff.same
    else:
        assert only(diff, section) == changes


@pytest.mark.parametrize(
    ("fields", "total"),
    [
        ({"operators": (OperatorCount("ai.onnx", "MatMul", 4),)}, None),
        ({"operators": (OperatorCount("ai.onnx", "MatMul", 9),)}, ("nodes", 4, 9)),
        (
            {"weights": census(by_kind=(WeightGroup("embedding", 2, 101), WeightGroup("norms", 5, 20)))},
            ("weight bytes", 120, 121),
        ),
        ({"cost": dataclasses.replace(LEFT.cost, cache_bytes_per_token=32)}, ("cache bytes per token", 64, 32)),
        ({"cost": dataclasses.replace(LEFT.cost, cache_bytes_per_token=None)}, ("cache bytes per token", 64, None)),
        (
            {"cost": dataclasses.replace(LEFT.cost, attention_flops=201)},
            ("FLOPs per token, context 50", 1200, 1201),
        ),
        ({"cost": DecodeCost(50, 1001, 199, 64, ())}, None),
    ],
)
def test_totals(fields: Mapping[str, Any], total: tuple[str, int, int] | None) -> None:
    diff = diff_inspections(LEFT, change(**fields))
    assert [(item.name, item.left, item.right) for item in diff.totals] == ([total] if total else [])


def test_the_same_under_another_path_does_not_differ() -> None:
    diff = diff_inspections(LEFT, change())
    assert diff.same
    assert diff.to_json() == {
        "schema_version": 1,
        "left": "left",
        "right": "right",
        "same": True,
        **{name: [] for name in ("totals", "operators", "weights", "dtypes", "opsets", "ports", "manifest")},
    }


def test_the_json_holds_every_section() -> None:
    value = diff_inspections(LEFT, change(operators=(), opset_imports={})).to_json()
    assert json.loads(json.dumps(value)) == value
    assert value["same"] is False
    assert value["operators"][0] == {"name": "ai.onnx::MatMul", "left": 3, "right": 0}
    assert len(value["opsets"]) == 2


# --- manifests ------------------------------------------------------------------------------------------------------


def record(manifest: Manifest, name: str, **fields: Any) -> PassRecord:
    return dataclasses.replace(manifest.passes[0], name=name, **fields)


def compared(left: Manifest | None, right: Manifest | None) -> dict[str, tuple[Any, Any]]:
    diff = diff_inspections(dataclasses.replace(LEFT, manifest=left), dataclasses.replace(LEFT, manifest=right))
    return {item.name: (item.left, item.right) for item in diff.manifest}


def test_a_graph_without_a_manifest_has_no_fields(manifest: Manifest) -> None:
    assert compared(None, None) == {}
    assert compared(None, manifest)["precision"] == (None, "int4")
    assert compared(manifest, None)["source.name"] == ("smollm2-135m", None)


def test_fields_have_paths_and_lists_of_plain_values_are_one(manifest: Manifest) -> None:
    model = dataclasses.replace(manifest.model, sliding_windows=(None, 256, None))
    other = dataclasses.replace(
        manifest, model=model, measured={}, tolerances={"engine.onnx": {"logits_max_abs": 2e-3}}
    )
    assert compared(manifest, other) == {
        "model.sliding_windows": ([None, 512, None], [None, 256, None]),
        "measured.engine.onnx.logits_max_abs": (2.5e-4, None),
        "measured": (None, {}),
        "tolerances.engine.onnx.logits_max_abs": (1e-3, 2e-3),
    }


def test_records_in_a_list_are_compared_one_by_one(manifest: Manifest) -> None:
    assert manifest.engine is not None
    engines = [
        dataclasses.replace(
            manifest, engine=dataclasses.replace(manifest.engine, details={"plans": [{"bytes": 1}, {"bytes": size}]})
        )
        for size in (2, 3)
    ]
    assert compared(*engines) == {"engine.details.plans.1.bytes": (2, 3)}


def test_passes_are_compared_by_name_and_turn(manifest: Manifest) -> None:
    """One pass more in front moves nothing; the second of a name is compared with the second."""
    fold, last = record(manifest, "Fold", nodes_after=20), record(manifest, "Fold", nodes_after=10)
    left = dataclasses.replace(manifest, passes=(fold, record(manifest, "Pack"), last))
    new = record(manifest, "New")
    changed = dataclasses.replace(last, nodes_after=9)
    right = dataclasses.replace(manifest, passes=(new, fold, record(manifest, "Pack"), changed))
    changes = compared(left, right)
    assert changes["passes.Fold#2.nodes_after"] == (10, 9)
    assert {name.split(".")[1] for name in changes} == {"New", "Fold#2"}
    assert "passes.New.name" not in changes


# --- paths ----------------------------------------------------------------------------------------------------------

MODEL = """<ir_version: 10, opset_import: ["" : 23]>
tiny (float[batch, 4] x, float[batch, 2, past, 3] k, float[batch, 2, past, 5] v, float[batch, 4, 1, 3] q) => (y)
<float[4, 4] w = {1,2,3,4,5,6,7,8,9,10,11,12,13,14,15,16}> { a = Attention(q, k, v)  y = MatMul(x, w) }"""


def test_both_sides_are_for_the_same_context(tmp_path: Path) -> None:
    """Attention of four heads over seven tokens, keys 3 and values 5 wide."""
    for name, text in (("a", MODEL), ("b", MODEL.replace("a = Attention(q, k, v)", "a = Relu(q)"))):
        ir.save(ir.from_onnx_text(text), tmp_path / f"{name}.onnx")
    diff = diff_paths(tmp_path / "a.onnx", tmp_path / "b.onnx", context=7)
    assert (diff.left.name, diff.right.name) == ("a.onnx", "b.onnx")
    assert diff.totals == (Change("FLOPs per token, context 7", 32 + 2 * 4 * 8 * 7, 32),)
    assert diff_paths(tmp_path / "a.onnx", tmp_path / "a.onnx", context=7).same
