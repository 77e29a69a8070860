"""Manifests of earlier versions as the present one has them; the only place that knows what they meant.

In: JSON values as :mod:`~llmc.compiler.artifact.manifest` reads them. Out: those of the present version.

Version 1 kept no contract: how a graph wants to be called was read off the passes that had run.
Version 2 kept what was measured without the graph that had run: that of the engine, or what stood in for it.
Version 3 did not keep at first how hard numbers were looked for, which commit of the hub a model was, nor adapters,
nor how the source had stored its weights and how many are stored in what,
nor tensors that were left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from llmc.compiler.base.contract import ENGINE_GRAPH, GRAPH, Contract
from llmc.compiler.base.errors import ArtifactError
from llmc.compiler.base.json_record import JsonValue, encode

_BY_GRAPH = ("tolerances", "measured")


def upgrade(value: JsonValue, where: str) -> JsonValue:
    """The value itself unless it is a manifest of an earlier version.

    Raises:
        ArtifactError: it says that it is one and has not the keys of one.
    """
    for version, next_one in ((1, _from_version_1), (2, _from_version_2)):
        if not isinstance(value, Mapping) or value.get("schema_version") is not version:
            continue
        try:
            value = next_one(value)
        except (AttributeError, KeyError, TypeError) as error:
            raise ArtifactError(
                f"{where} is no manifest of version {version} ({error!r}); make the artifact again"
            ) from error
    return _with_later_keys(value) if isinstance(value, Mapping) else value


def _with_later_keys(value: Mapping[str, Any]) -> dict[str, JsonValue]:
    """Version 3 with the keys that came to it later."""
    source = value.get("source")
    known = (
        {"source": {"revision": None, "commit": None, "adapters": [], "stored_as": None, "ignored": [], **source}}
        if isinstance(source, Mapping)
        else {}
    )
    return {"effort": None, "stored": {}, **value, **known}


def _from_version_1(value: Mapping[str, Any]) -> dict[str, JsonValue]:
    contract = Contract(
        rows="slot0" if any(_starts_at_slot_0(record) for record in value["passes"]) else "mask",
        ragged_chunks=all(record["fields"].get("query_seqlens", True) for record in _of(value, "LowerAttention")),
        lengths="inputs" if any(_of(value, "TakeLengths")) else "mask",
        cache=value["cache"],
        logits=value["logits"],
        rounded_to="fp16" if any(record["counts"] for record in _of(value, "ConvertFloat")) else None,
    )
    engine = value["engine"]
    if engine is not None:
        details = {name: detail for name, detail in engine["details"].items() if name != "graph"}
        graph = ENGINE_GRAPH if ENGINE_GRAPH in value["files"] else GRAPH
        # Its profiles were always empty.
        engine = {**{k: v for k, v in engine.items() if k != "profiles"}, "details": details, "graph": graph}
    kept = {name: item for name, item in value.items() if name not in {"cache", "logits"}}
    return {**kept, "contract": encode(contract), "engine": engine, "plan": {}, "schema_version": 2}


def _from_version_2(value: Mapping[str, Any]) -> dict[str, JsonValue]:
    engine = value["engine"]
    graphs = [GRAPH if engine is None else engine["graph"]]
    if engine is not None and engine["runtime"] == "openvino-cpu":
        graphs = ["openvino_model.xml"]
    if engine is not None and engine["runtime"].startswith("tensorrt"):
        graphs.append(GRAPH)
    tolerances, measured = (dict.fromkeys(graphs, value[kind]) if value[kind] else {} for kind in _BY_GRAPH)
    return {**value, "tolerances": tolerances, "measured": measured, "schema_version": 3}


def _of(value: Mapping[str, Any], name: str) -> Iterator[Mapping[str, Any]]:
    return (record for record in value["passes"] if record["name"] == name)


def _starts_at_slot_0(record: Mapping[str, Any]) -> bool:
    """Attention that was lowered into a cache whose rows begin there."""
    return bool(record["counts"].get("attention")) and (
        record["name"] == "LowerAttention"
        or (record["name"] == "UseStandardAttention" and record["fields"].get("cache") == "scatter")
    )
