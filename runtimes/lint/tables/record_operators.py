"""Asks a runtime about each operator: versions, element types, constants, and uses that do not run.

In: an asker. Out: an :class:`~llmc.runtimes.lint.tables.table.OperatorRow` by label, for ONNX's domain and
com.microsoft.
"""

from __future__ import annotations

import copy
import itertools
import logging
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper

from llmc.runtimes.lint.tables.agreement import difference
from llmc.runtimes.lint.tables.asking import Answer, Asker
from llmc.runtimes.lint.tables.conditions import Experience, learn
from llmc.runtimes.lint.tables.microsoft_cases import microsoft_cases
from llmc.runtimes.lint.tables.node_cases import (
    ELEMENT_TYPES,
    NodeCase,
    at_version,
    fix_inputs,
    read_cases,
    versions_of,
    with_key_type,
    without_options,
)
from llmc.runtimes.lint.tables.node_view import TYPE_FEATURE, features
from llmc.runtimes.lint.tables.probe import MICROSOFT, make_probe
from llmc.runtimes.lint.tables.record_traps import FUSED_TOLERANCE, NOT_THERE, ask_probe, plain_message
from llmc.runtimes.lint.tables.table import Condition, OperatorRow, Outcome, Signature, VersionRow

log = logging.getLogger(__name__)
OLDEST_OPSET = 13
"""Definitions that only models of older opsets use are not asked about."""
TRIES = 3
"""Tests of an operator that are tried with each type."""
INSERTED = "InsertedPrecisionFreeCast"
"""Name of the conversions that ONNX Runtime puts around an operator without a kernel for float16."""


def record_operators(
    asker: Asker, runtime: str, highest_opset: int, only: Collection[str] = ()
) -> Mapping[str, OperatorRow]:
    """ONNX's own operators, in the definitions up to an opset; ``only`` some of them."""
    by_operator: dict[str, list[NodeCase]] = {}
    for case in read_cases():
        if only and case.op_type not in only:
            continue
        by_operator.setdefault(case.op_type, []).append(fix_inputs(case))
    rows = {}
    for op_type, cases in sorted(by_operator.items()):
        experiences = [item for case in cases for item in _experience(asker, case)]
        versions = tuple(
            row
            for version in versions_of(op_type, OLDEST_OPSET)
            if version <= highest_opset and (row := _version(asker, cases, version)) is not None
        )
        if versions:
            constants = _constants(asker, cases) if runtime == "tensorrt-rtx" else ()
            rows[op_type] = OperatorRow(_merge(versions), constants, _unread(asker, cases), learn(experiences))
            log.info("%s: %s, %d conditions", op_type, versions[-1].takes, len(rows[op_type].conditions))
    return rows


def record_microsoft(asker: Asker, runtime: str) -> Mapping[str, OperatorRow]:
    """com.microsoft operators: ONNX Runtime tells its kernels; other runtimes are shown each operator."""
    if runtime == "onnxruntime":
        return _kernel_rows(asker)
    rows = {}
    cases = microsoft_cases()
    for name in _microsoft_names():
        label = f"{MICROSOFT}::{name}"
        probes = cases.get(label)
        if probes is None:
            message = plain_message(asker.ask(_lonely(name)).message)
            if message == NOT_THERE:
                rows[label] = OperatorRow((VersionRow(1, (), message=message),))
            continue
        answers = {kind: ask_probe(asker, probe, tolerance=FUSED_TOLERANCE) for kind, probe in probes.items()}
        taken = tuple(kind for kind, (outcome, _) in answers.items() if outcome != "refused")
        refusals = [text for outcome, text in answers.values() if outcome == "refused"]
        message = NOT_THERE if NOT_THERE in refusals else next(iter(refusals), "")
        wrong = tuple(
            Condition("wrong", (f"{TYPE_FEATURE}={kind}",), "", text)
            for kind, (outcome, text) in answers.items()
            if outcome == "wrong"
        )
        version = VersionRow(1, taken, message="" if taken else message)
        rows[label] = OperatorRow((version,), conditions=wrong)
        log.info("%s: %s, %d conditions", label, taken, len(wrong))
    return rows


def _ask(asker: Asker, case: NodeCase, *, run: bool = False) -> Answer:
    """Show a case; TensorRT decomposes attention in float32 only where the node allows it, so there it does."""
    model = case.model
    if asker.runtime == "tensorrt-rtx" and case.op_type == "Attention":
        model = copy.deepcopy(case.model)
        model.graph.node[0].attribute.append(helper.make_attribute("TRT_decomposable", 1))
    return asker.ask(model.SerializeToString(), case.inputs if run else None)


def _experience(asker: Asker, case: NodeCase) -> list[Experience]:
    """A test as it is; nothing is learnt from one that ends the process, or whose numbers are random."""
    answer = _ask(asker, case, run=True)
    if answer.crashed or not case.teaches:
        return []
    found, schema = features(case.view), case.view.schema
    parameters = {item.type_param_str for item in schema.type_constraints} if schema is not None else set()
    types = frozenset(item for item in found if item.partition("=")[0] in parameters)
    outcome, message = _outcome(case, answer)
    return [Experience(case.name, found, outcome, message, types)]


def _outcome(case: NodeCase, answer: Answer) -> tuple[Outcome, str]:
    if not answer.taken:
        return "refused", plain_message(answer.message)
    differs = None if case.random else difference(answer.outputs, case.expected)
    return ("runs", "") if differs is None else ("wrong", differs)


def _version(asker: Asker, cases: Sequence[NodeCase], version: int) -> VersionRow | None:
    """Types that a definition takes; None where no test fits it."""
    opset = max(version, OLDEST_OPSET)
    usable = [fitting for case in cases if (fitting := at_version(case, opset)) is not None]
    if not usable:
        return None
    usable = [*usable, *(fit for case in usable if (fit := at_version(without_options(case), opset)) is not None)]
    usable.sort(key=lambda case: len(features(case.view)))
    kinds, message = dict[str, str](), ""
    for dtype in ELEMENT_TYPES:
        variants = [item for case in usable if (item := with_key_type(case, dtype)) is not None][:TRIES]
        for variant in variants:
            answer = _ask(asker, variant)
            message = message or plain_message(answer.message)
            if answer.taken:
                kinds[dtype] = _replaced(variant, answer)
                break
    if not kinds:
        plain = [_ask(asker, case) for case in usable]
        message = "" if any(answer.taken for answer in plain) else message or plain_message(plain[0].message)
    converted, expanded = (
        tuple(dtype for dtype, kind in kinds.items() if kind == replaced) for replaced in ("converted", "expanded")
    )
    return VersionRow(version, tuple(kinds), converted, expanded, "" if kinds else message)


def _replaced(case: NodeCase, answer: Answer) -> str:
    """Whether other nodes run in the operator's place: conversions around it, or its definition's body."""
    if not answer.graph:
        return ""
    nodes = onnx.load_from_string(answer.graph).graph.node
    if any(node.name.startswith(INSERTED) for node in nodes):
        return "converted"
    return "" if any(node.op_type == case.op_type for node in nodes) or len(nodes) < 2 else "expanded"


def _constants(asker: Asker, cases: Sequence[NodeCase]) -> tuple[int, ...]:
    """Inputs with which the operator is taken as constants, and refused as inputs of the graph."""
    found = set[int]()
    for case in cases[:TRIES]:
        fixed = {item.name for item in case.model.graph.initializer}
        if fixed and _ask(asker, case).taken:
            names = enumerate(case.model.graph.node[0].input)
            found |= {index for index, name in names if name in fixed and not _ask(asker, _freed(case, name)).taken}
    return tuple(sorted(found))


def _freed(case: NodeCase, name: str) -> NodeCase:
    """The model with one constant as an input of the graph."""
    model = copy.deepcopy(case.model)
    tensor = next(item for item in model.graph.initializer if item.name == name)
    model.graph.input.append(helper.make_tensor_value_info(name, tensor.data_type, list(tensor.dims)))
    model.graph.initializer.remove(tensor)
    return replace(case, model=model)


def _unread(asker: Asker, cases: Sequence[NodeCase]) -> tuple[str, ...]:
    """Optional inputs that are accepted and not read."""
    found = set[str]()
    for case in cases:
        optional = {item.removeprefix("input ") for item in features(case.view) if item.startswith("input ")}
        parameters = case.view.schema.inputs if case.view.schema is not None else ()
        names = {name: item.name for name, item in zip(case.model.graph.node[0].input, parameters, strict=False)}
        answer = _ask(asker, case) if optional else Answer(False)
        found |= {names[value] for value in answer.unread if names.get(value) in optional}
    return tuple(sorted(found))


def _merge(versions: Sequence[VersionRow]) -> tuple[VersionRow, ...]:
    """Without definitions that are treated as the one before."""
    return tuple(next(alike) for _, alike in itertools.groupby(versions, lambda row: replace(row, since=0)))


def _kernel_rows(asker: Asker) -> dict[str, OperatorRow]:
    """ONNX Runtime's own list; float16 runs between conversions where there is a kernel for float32 alone."""
    types: dict[str, set[str]] = {}
    for domain, name, _, _, constraints in asker.kernels:
        if domain == MICROSOFT:
            kinds: Sequence[str] = (
                constraints.get("T") or constraints.get("T1") or next(iter(constraints.values()), [])[:1]
            )
            types.setdefault(name, set()).update(map(_plain, kinds))
    signatures = {
        name: Signature(inputs, outputs, tuple(attributes)) for name, inputs, outputs, attributes in asker.schemas
    }
    rows = {}
    for name in sorted({*_microsoft_names(), *types}):
        takes = types.get(name, set())
        casts = ("float16",) if "float32" in takes and "float16" not in takes else ()
        message = "" if takes else NOT_THERE
        version = VersionRow(1, (*sorted(takes), *casts), casts, (), message)
        rows[f"{MICROSOFT}::{name}"] = OperatorRow((version,), signature=signatures.get(name))
    return rows


def _plain(kind: str) -> str:
    name = kind.removeprefix("tensor(").removesuffix(")")
    return {"float": "float32", "double": "float64"}.get(name, name)


def _microsoft_names() -> list[str]:
    """Operators that the ONNX Runtime installed here defines."""
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

    return sorted({schema.name for schema in get_all_operator_schema() if schema.domain == MICROSOFT})


def _lonely(name: str) -> bytes:
    """The operator with one input of rank 2: enough for a runtime to say that it has none of that name."""
    node = helper.make_node(name, ["x"], ["y"], domain=MICROSOFT)
    probe = make_probe([node], {"x": np.zeros((2, 2), np.float32)}, {"y": (1, [2, 2])}, opset=23)
    return bytes(probe.model.SerializeToString())
