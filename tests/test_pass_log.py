"""The log of passes is provenance: shown and compared, never read to know what a graph is."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDERS = ("compiler", "passes", "runtimes")
PHASES = ("cleanup", "portable", "fusion", "lowering", "quantization", "engine")
#: Manifests of version 1 kept no contract, and this reads one off their passes.
UPGRADE = "compiler/artifact/manifest_upgrade.py"
#: Who may ask a record for its configuration: to print it.
SHOWS_FIELDS = frozenset({"compiler/artifact/reports.py", "compiler/cli/tables/pass_tables.py"})


def pass_names() -> frozenset[str]:
    """Public classes of the phases: one pass a file."""
    files = [path for phase in PHASES for path in (ROOT / "passes" / phase).glob("*.py")]
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    return frozenset(
        node.name
        for tree in trees
        for node in tree.body
        if isinstance(node, ast.ClassDef) and any("Pass" in ast.unparse(base) for base in node.bases)
    )


def readings(tree: ast.Module, names: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Where a module names a pass by text, asks a class of one for its name, or asks a record for its fields."""
    asked = {f"{name}.__name__" for name in names} | {f"{record}.fields" for record in ("record", "item", "entry")}
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and node.value in names:
            yield node.lineno, f"the text {node.value!r}"
        elif isinstance(node, ast.Attribute) and (text := ast.unparse(node)) in asked:
            yield node.lineno, text


def test_nothing_reads_what_passes_were_called() -> None:
    names = pass_names()
    wrong = [
        f"{path.relative_to(ROOT)}:{line} {what}"
        for folder in FOLDERS
        for path in sorted((ROOT / folder).rglob("*.py"))
        if (place := str(path.relative_to(ROOT))) != UPGRADE
        for line, what in readings(ast.parse(path.read_text(encoding="utf-8")), names)
        if not (what.endswith(".fields") and place in SHOWS_FIELDS)
    ]
    assert not wrong, f"let the pass state it in the graph's Contract instead: {wrong}"


def test_the_rule_sees_each_way_to_read() -> None:
    """It would be worthless if it passed on everything."""
    names = pass_names()
    assert {"LowerAttention", "ConvertFloat", "UseStandardAttention", "TakeLengths", "QuantizeWeights"} <= names
    for text in (
        'any(record.name == "LowerAttention" for record in manifest.passes)',
        "record.name == ConvertFloat.__name__",
        'record.fields.get("query_seqlens", True)',
    ):
        assert len(list(readings(ast.parse(text), names))) == 1, text
    assert list(readings(ast.parse((ROOT / UPGRADE).read_text(encoding="utf-8")), names))
