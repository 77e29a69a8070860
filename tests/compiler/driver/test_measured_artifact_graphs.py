"""What is recorded of each graph of an artifact, what is accepted of it later, and what was lost."""

from __future__ import annotations

from dataclasses import replace

import pytest

from llmc.compiler.artifact.manifest import FileRecord, Manifest
from llmc.compiler.base.errors import EngineError, VerificationError
from llmc.compiler.base.options import ChosenEffort
from llmc.compiler.driver import measured_artifact
from llmc.compiler.driver.verification import ALONG_TEXT, KL, LOGIT_ERROR, TOP1, Measured

from .machine_fake import Machine, engine, graph, install, own_operators, recorded, verified


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Machine:
    return install(monkeypatch)


# --- by graph -------------------------------------------------------------------------------------------------------


BOTH = {"engine.onnx": Measured(1.0, 0.005, 0.9), "model.onnx": Measured(3.0, 0.01, 0.95)}


def test_each_graph_has_tolerances_of_its_own(machine: Machine, manifest: Manifest) -> None:
    machine.by_graph = BOTH
    made, result = recorded(machine, own_operators(manifest))
    assert made.measured == {graph: errors.to_mapping() for graph, errors in BOTH.items()}
    assert made.tolerances["engine.onnx"][KL] == pytest.approx(0.005 * 1.25 + 1e-4)
    assert made.tolerances["model.onnx"][KL] == pytest.approx(0.01 * 1.25 + 1e-4)
    assert [(graph.graph, len(graph.checks)) for graph in result.graphs] == [("engine.onnx", 3), ("model.onnx", 3)]
    assert verified(machine, made).passed
    # Neither is held to the other's.
    machine.by_graph = dict.fromkeys(BOTH, BOTH["model.onnx"])
    failed = [
        (graph.graph, check.name)
        for graph in verified(machine, made).graphs
        for check in graph.checks
        if not check.passed
    ]
    assert failed == [("engine.onnx", LOGIT_ERROR), ("engine.onnx", KL)]


@pytest.mark.parametrize(("kl", "passed"), [(1.9, True), (2.1, False)])
def test_a_graph_that_did_not_run_when_it_was_made_has_the_limits_of_its_precision(
    machine: Machine, manifest: Manifest, kl: float, passed: bool
) -> None:
    """Made without a C compiler, verified with one."""
    machine.kernels = "no C compiler is installed"
    made, result = recorded(machine, own_operators(manifest))
    assert set(made.tolerances) == {"model.onnx"}
    assert (result.graphs[0].checks, result.passed) == ((), True)
    machine.kernels, machine.by_graph = "", {"engine.onnx": Measured(50.0, kl, 0.2)}
    own = verified(machine, made).graphs[0]
    assert [check.tolerance for check in own.checks] == [None, 2.0, None]
    assert all(check.passed for check in own.checks) is passed


def test_a_graph_of_floats_is_exact_wherever_it_ran_first(machine: Machine, manifest: Manifest) -> None:
    machine.measured = Measured(2e-3, 0.0, 1.0, Measured(0.0, 0.0, 0.9))
    made = replace(engine(manifest, "cpu"), precision="fp32", tolerances={})
    failed = [check.name for check in verified(machine, made).checks if not check.passed]
    assert failed == [LOGIT_ERROR, TOP1 + ALONG_TEXT]


# --- what was lost --------------------------------------------------------------------------------------------------


def test_what_counts_is_the_graph_and_the_text_that_lost_the_most(machine: Machine, manifest: Manifest) -> None:
    machine.by_graph = {
        "engine.onnx": Measured(1.0, 0.01, 0.9),
        "model.onnx": Measured(1.0, 0.02, 0.8, Measured(1.0, 0.3, 0.6)),
    }
    _, result = recorded(machine, own_operators(manifest))
    assert (result.loss.kl, result.loss.top1, result.loss.graph, result.loss.word) == (
        0.3,
        0.6,
        "model.onnx",
        "heavy",
    )
    assert result.passed, "it is what it was made to be"
    assert result.remedy == "--asymmetric, --block-size 32, --layout packed or --precision int5 loses less"


@pytest.mark.parametrize(
    ("effort", "named"),
    [("round", "--effort normal, "), ("normal", "--effort best, "), ("best", ""), (None, "")],
)
@pytest.mark.parametrize("tokenizer", [True, False])
def test_a_text_is_named_where_the_model_can_read_one(
    machine: Machine, manifest: Manifest, effort: ChosenEffort | None, named: str, tokenizer: bool
) -> None:
    machine.measured = Measured(1.0, 0.1, 0.9)
    files = {"tokenizer.json": FileRecord(1, 64 * "0")} if tokenizer else {}
    made = replace(own_operators(manifest), effort=effort, files=files)
    assert verified(machine, made).remedy.startswith((named if tokenizer else "") + "--asymmetric")


def test_nobody_is_told_what_helps_where_little_is_lost(machine: Machine, manifest: Manifest) -> None:
    machine.measured = Measured(1.0, 0.05, 0.9)
    _, result = recorded(machine, own_operators(manifest))
    assert (result.loss.word, result.remedy) == ("hardly noticeable", "")


@pytest.mark.parametrize(("limit", "passed"), [(0.03, True), (0.02, True), (0.019, False), (0.0, False)])
def test_a_limit_of_the_users_own(machine: Machine, manifest: Manifest, limit: float, passed: bool) -> None:
    machine.by_graph = {"model.onnx": Measured(1.0, 0.02, 0.9)}
    made = own_operators(manifest)
    if passed:
        assert recorded(machine, made, limit)[1].most.passed
    else:
        said = rf"mean KL divergence \(--max-kl\) is 0\.02, {limit:.3g} is accepted; nothing was written; .* loses"
        with pytest.raises(VerificationError, match=said):
            recorded(machine, made, limit)
        assert machine.written == []
    assert verified(machine, made, limit).passed is passed


def test_a_limit_that_nothing_can_be_compared_with(
    machine: Machine, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VerificationError, match=r"--max-kl 0\.1 cannot be checked, because it is measured when"):
        recorded(machine, graph(manifest, "cuda"), 0.1)
    machine.measured = EngineError("q_norm_weight is not supported")
    with pytest.raises(VerificationError, match="because q_norm_weight is not supported; nothing was written"):
        recorded(machine, engine(manifest, "cuda"), 0.1)
    monkeypatch.setattr(measured_artifact, "load_golden", lambda directory: None)
    with pytest.raises(VerificationError, match="because there are no golden data; nothing was written"):
        recorded(machine, engine(manifest, "cpu"), 0.1)
    assert recorded(machine, engine(manifest, "cpu"))[1] is None
