"""The table of one target: what it takes, recorded or documented.

In: a target's name. Out: :class:`TargetTable`, read from the JSON file beside this module that
:mod:`~llmc.runtimes.lint.tables.record` wrote, or :mod:`~llmc.runtimes.lint.tables.read_documentation` where the
runtime could not be asked. :attr:`~TargetTable.evidence` says which, and every row that was not measured names its
source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Literal, TypeAlias

from llmc.compiler.base.errors import ArtifactError, UsageError
from llmc.compiler.base.json_record import JsonValue, decode, encode, from_text

FOLDER = Path(__file__).parent
SCHEMA_VERSION = 1
Outcome: TypeAlias = Literal["runs", "slow", "refused", "wrong"]


@dataclass(frozen=True)
class VersionRow:
    """One definition of an operator.

    Attributes:
        since: Version of the domain in which this definition came.
        takes: Element types of the deciding input that the runtime takes; empty where it takes none, or where the
            operator has no such input and there is no message.
        converted: Those of them for which it puts conversions around the operator.
        expanded: Those of them for which it runs the definition's body instead of a kernel.
        message: What it says when it does not take the operator.
    """

    since: int
    takes: tuple[str, ...] = ()
    converted: tuple[str, ...] = ()
    expanded: tuple[str, ...] = ()
    message: str = ""


@dataclass(frozen=True)
class Condition:
    """A use of an operator that does not run, learnt from ONNX's operator tests.

    Attributes:
        outcome: refused or wrong.
        features: Properties (:func:`~llmc.runtimes.lint.tables.node_view.features`) that no test which ran has
            together; none: every use.
        case: A test that shows it; empty where it was no test of ONNX's.
        message: What the runtime said, or how far its numbers are off.
    """

    outcome: Outcome
    features: tuple[str, ...] = ()
    case: str = ""
    message: str = ""


@dataclass(frozen=True)
class Signature:
    """What a release knows of its own operator; a model with more is refused.

    Attributes:
        inputs: Most inputs; 0: any number.
        outputs: Most outputs; 0: any number.
        attributes: All of them.
    """

    inputs: int
    outputs: int
    attributes: tuple[str, ...] = ()


@dataclass(frozen=True)
class OperatorRow:
    """What is known of an operator.

    Attributes:
        versions: By definition, oldest first.
        constants: Inputs that must be constants.
        unread: Optional inputs that the runtime accepts and does not read.
        conditions: Uses that do not run.
        source: Where it is written; empty where the runtime itself was asked.
        signature: Of the runtime's own operators.
    """

    versions: tuple[VersionRow, ...] = ()
    constants: tuple[int, ...] = ()
    unread: tuple[str, ...] = ()
    conditions: tuple[Condition, ...] = ()
    source: str = ""
    signature: Signature | None = None

    def at(self, since: int) -> VersionRow | None:
        """The row of a definition, or of the newest older one where it was not asked about; None: not known."""
        older = [row for row in self.versions if row.since <= since]
        return older[-1] if older else None


@dataclass(frozen=True)
class TrapRow:
    """What a runtime does with the graph of a trap.

    Attributes:
        outcome: With the trap's graph.
        near_miss: With the graph that lacks only the trap.
        message: What the runtime said, or how far its numbers are off.
        source: Where it is written; empty where the runtime itself was asked.
    """

    outcome: Outcome
    near_miss: Outcome
    message: str = ""
    source: str = ""


@dataclass(frozen=True)
class TargetTable:
    """Everything known of a target.

    Attributes:
        schema_version: Of this format.
        target: As it is named on the command line.
        title: As people write it.
        tool: What was asked, with its version.
        recorded: Date, as 2026-03-31.
        evidence: One sentence on where the entries come from; every report ends with it.
        lowest_opset: Oldest operator version that is taken.
        highest_opset: Newest.
        highest_ir: Newest version of the file format.
        operators: By label.
        absent: Labels of operators that it does not have.
        traps: By the trap's name.
        notes: What holds for every model, as a precision that is changed unasked.
    """

    schema_version: int
    target: str
    title: str
    tool: str
    recorded: str
    evidence: str
    lowest_opset: int
    highest_opset: int
    highest_ir: int
    operators: Mapping[str, OperatorRow]
    absent: tuple[str, ...]
    traps: Mapping[str, TrapRow]
    notes: tuple[str, ...] = ()


def targets() -> tuple[str, ...]:
    """Names of all targets, each a tool and its release."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*-*.json")))


@cache
def load_table(target: str) -> TargetTable:
    """Read a target's table.

    Raises:
        UsageError: there is no such target.
        ArtifactError: the file is not what this version of llmc writes.
    """
    if target not in targets():
        raise UsageError(f"--target {target!r} is not known; choose one of {', '.join(targets())}")
    value = from_text((FOLDER / f"{target}.json").read_text(encoding="utf-8"), f"{target}.json")
    table = decode(TargetTable, value, f"{target}.json", sparse=True)
    if table.schema_version != SCHEMA_VERSION:
        raise ArtifactError(
            f"{target}.json has schema version {table.schema_version}, not {SCHEMA_VERSION}; record it anew"
        )
    return table


def table_text(table: TargetTable) -> str:
    """A table as JSON, an operator a line; what is empty is left out."""
    value = encode(table)
    lines = []
    for key in sorted(value):
        item = _without_empty(value[key])
        if isinstance(item, dict):
            rows = ",\n".join(f"    {json.dumps(name)}: {json.dumps(row)}" for name, row in sorted(item.items()))
            lines.append(f"  {json.dumps(key)}: {{\n{rows}\n  }}")
        else:
            lines.append(f"  {json.dumps(key)}: {json.dumps(item)}")
    return "{\n" + ",\n".join(lines) + "\n}\n"


def _without_empty(value: JsonValue) -> JsonValue:
    if isinstance(value, Mapping):
        return {key: _without_empty(item) for key, item in value.items() if item not in ([], "", None)}
    return [_without_empty(item) for item in value] if isinstance(value, list) else value
