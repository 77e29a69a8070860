"""How two graphs or artifacts differ.

In: two :class:`Inspection`. Out: :class:`InspectionDiff`, which holds only what differs.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.base.json_record import JsonValue, encode
from llmc.compiler.insight.decode_cost import DEFAULT_CONTEXT
from llmc.compiler.insight.inspection import Inspection, Port, inspect_path
from llmc.compiler.insight.weight_census import WeightGroup

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Change:
    """One thing that is not the same on both sides.

    Attributes:
        name: What it is, as ``com.microsoft::MatMulNBits`` or ``passes.PackQKV.counts.packed``.
        left: Its value on the left; None where it is absent.
        right: Its value on the right; None where it is absent.
    """

    name: str
    left: JsonValue
    right: JsonValue


@dataclass(frozen=True)
class InspectionDiff:
    """The differences of two graphs; each tuple is empty where there is none.

    Attributes:
        left: Path of the first.
        right: Path of the second.
        totals: Nodes, bytes of weights, cache bytes per token, operations per token.
        operators: Counts by operator.
        weights: Bytes by kind.
        dtypes: Bytes by data type.
        opsets: Version by operator domain.
        ports: Data type and shape of inputs and outputs.
        manifest: Fields of ``llmc.json``, by path.
    """

    left: Path
    right: Path
    totals: tuple[Change, ...]
    operators: tuple[Change, ...]
    weights: tuple[Change, ...]
    dtypes: tuple[Change, ...]
    opsets: tuple[Change, ...]
    ports: tuple[Change, ...]
    manifest: tuple[Change, ...]

    @property
    def sections(self) -> Mapping[str, tuple[Change, ...]]:
        """The differences by what they are differences of."""
        names = ("totals", "operators", "weights", "dtypes", "opsets", "ports", "manifest")
        return {name: getattr(self, name) for name in names}

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not any(self.sections.values())

    def to_json(self) -> dict[str, Any]:
        """Plain values for ``json.dump``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "left": str(self.left),
            "right": str(self.right),
            "same": self.same,
            **{name: [asdict(change) for change in changes] for name, changes in self.sections.items()},
        }


def diff_paths(left: Path, right: Path, *, context: int = DEFAULT_CONTEXT) -> InspectionDiff:
    """Inspect two paths and compare them; errors are :func:`~llmc.compiler.insight.inspection.inspect_path`'s."""
    return diff_inspections(inspect_path(left, context=context), inspect_path(right, context=context))


def diff_inspections(left: Inspection, right: Inspection) -> InspectionDiff:
    """Compare two inspections, the first as the left side."""
    return InspectionDiff(
        left=left.path,
        right=right.path,
        totals=_changes(_totals(left), _totals(right)),
        operators=_changes(_operators(left), _operators(right), absent=0),
        weights=_changes(_bytes(left.weights.by_kind), _bytes(right.weights.by_kind), absent=0),
        dtypes=_changes(_bytes(left.weights.by_dtype), _bytes(right.weights.by_dtype), absent=0),
        opsets=_changes(left.opset_imports, right.opset_imports),
        ports=_changes(_ports(left), _ports(right)),
        manifest=_changes(_manifest(left), _manifest(right)),
    )


def _changes(
    left: Mapping[str, JsonValue], right: Mapping[str, JsonValue], absent: JsonValue = None
) -> tuple[Change, ...]:
    """What differs, in the order of the left side, then what only the right side has."""
    pairs = ((name, left.get(name, absent), right.get(name, absent)) for name in {**left, **right})
    return tuple(Change(name, before, after) for name, before, after in pairs if before != after)


def _totals(side: Inspection) -> dict[str, JsonValue]:
    return {
        "nodes": side.nodes,
        "weight bytes": side.weights.bytes,
        "cache bytes per token": side.cost.cache_bytes_per_token,
        f"FLOPs per token, context {side.cost.context}": side.cost.flops,
    }


def _bytes(groups: Iterable[WeightGroup]) -> dict[str, JsonValue]:
    return {group.name: group.bytes for group in groups}


def _operators(side: Inspection) -> dict[str, JsonValue]:
    return {f"{operator.domain}::{operator.name}": operator.count for operator in side.operators}


def _ports(side: Inspection) -> dict[str, JsonValue]:
    found: dict[str, JsonValue] = {}
    for kind, ports in (("input", side.inputs), ("output", side.outputs)):
        found.update({f"{kind} {port.name}": port_text(port) for port in ports})
    return found


def port_text(port: Port) -> str:
    """A port's type in one word, as ``FLOAT[batch, 3, past, 64]``."""
    shape = "[…]" if port.shape is None else f"[{', '.join('?' if dim is None else str(dim) for dim in port.shape)}]"
    return f"{port.dtype or '?'}{shape}"


def _manifest(side: Inspection) -> dict[str, JsonValue]:
    if side.manifest is None:
        return {}
    record = encode(side.manifest)
    record["passes"] = _passes_by_name(record["passes"])
    return dict(_leaves(record))


def _passes_by_name(passes: JsonValue) -> dict[str, JsonValue]:
    """Passes by name, so that one pass more does not move all that follow; a repeated name gets a number."""
    found: dict[str, JsonValue] = {}
    for item in passes if isinstance(passes, list) else ():
        name = base = str(item["name"])
        number = 1
        while name in found:
            number += 1
            name = f"{base}#{number}"
        found[name] = {key: value for key, value in item.items() if key != "name"}
    return found


def _leaves(value: JsonValue, path: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Values of a tree with their paths; a list of plain values is one leaf."""
    children: Iterable[tuple[str, JsonValue]]
    if isinstance(value, Mapping) and value:
        children = value.items()
    elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
        children = ((str(index), item) for index, item in enumerate(value))
    else:
        yield path, value
        return
    for name, child in children:
        yield from _leaves(child, f"{path}.{name}" if path else name)
