"""Runtimes that are installed here are asked again; the tables must say the same of the same release."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version

import pytest

from llmc.runtimes.lint.tables.asking import Asker
from llmc.runtimes.lint.tables.attention_traps import attention
from llmc.runtimes.lint.tables.record_operators import record_operators
from llmc.runtimes.lint.tables.record_traps import TRAPS, ask_probe
from llmc.runtimes.lint.tables.table import TargetTable, load_table

RUNTIMES = {
    "onnxruntime": ("ort-1.32", "onnxruntime"),
    "tensorrt-rtx": ("tensorrt-rtx-1.7", "tensorrt_rtx_cu13_bindings"),
    "openvino": ("openvino-2026", "openvino"),
}
ASKED = {
    "onnxruntime": ("attention-lengths", "attention-softcap", "dequantize-transposed", "dequantize-float16"),
    "tensorrt-rtx": ("attention-lengths", "attention-softcap", "attention-value-width", "dequantize-int4-zero-point"),
    "openvino": ("attention-lengths", "gqa-batch", "gqa-symbolic-buffer", "gqa-softcap"),
}
OPERATORS = ("RMSNormalization", "TensorScatter")


@pytest.fixture(scope="module", params=sorted(RUNTIMES))
def asked(request: pytest.FixtureRequest) -> Iterator[tuple[Asker, TargetTable]]:
    runtime: str = request.param
    target, distribution = RUNTIMES[runtime]
    table = load_table(target)
    recorded = table.tool.rpartition(" ")[2]
    try:
        installed = version(distribution)
    except PackageNotFoundError:
        pytest.skip(f"{distribution} is not installed")
    if installed.split(".")[:2] != recorded.split(".")[:2]:
        pytest.skip(f"{distribution} {installed} is installed, the table is of {recorded}")
    with Asker(runtime, sys.executable) as asker:
        yield asker, table


def test_traps(asked: tuple[Asker, TargetTable]) -> None:
    asker, table = asked
    traps = {trap.name: trap for trap in TRAPS}
    for name in ASKED[asker.runtime]:
        trap = traps[name]
        assert ask_probe(asker, trap.probe, trap.unfused)[0] == table.traps[name].outcome, name
        assert ask_probe(asker, trap.near_miss, trap.unfused)[0] == table.traps[name].near_miss, name


def test_operators(asked: tuple[Asker, TargetTable]) -> None:
    asker, table = asked
    found = record_operators(asker, asker.runtime, table.highest_opset, only=OPERATORS)
    for name in OPERATORS:
        assert (name in table.absent) or found[name] == table.operators[name], name


def test_a_runtime_that_ends_is_started_again(asked: tuple[Asker, TargetTable]) -> None:
    asker, _ = asked
    model = attention().model.SerializeToString()
    assert not asker.ask(b"no model at all").taken
    assert asker.ask(model).taken
    assert asker._process is not None
    asker._process.kill()
    assert asker.ask(model).crashed
    assert asker.ask(model).taken
