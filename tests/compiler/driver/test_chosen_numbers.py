"""What ``--effort`` and ``--calibration`` mean."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.ledger_report import LedgerError
from llmc.compiler.base.contract import DATA, GRAPH
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import CompileOptions, ExportOptions, OptimizeOptions
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.driver import capabilities as capabilities_module
from llmc.compiler.driver import chosen_numbers as module
from llmc.compiler.driver.capabilities import Capabilities, find_capabilities
from llmc.compiler.driver.chosen_numbers import Amount, chosen_numbers
from llmc.compiler.driver.driver import compile_model, export, optimize
from llmc.compiler.driver.target_passes import Numbers, float_passes
from llmc.compiler.graph.quantized_weight import QuantizedPart
from llmc.compiler.quantization.dequantize import dequantize
from llmc.compiler.quantization.plan import make_plan
from llmc.compiler.quantization.solved_store import Stored, StoredStack
from llmc.passes.quantization import emit_qmoe
from llmc.passes.quantization.emission import Emission
from llmc.passes.quantization.sites import find_sites
from llmc.passes.runner import run_passes

from ...shared import Shared
from ..tiny_text_model import WORDS, expert_model, text_model

TEXT = " ".join(np.random.default_rng(0).choice(WORDS[5:], 4000))


@pytest.fixture(scope="session")
def portable() -> Path:
    shared = Shared.current()
    model = text_model(shared)
    return shared.make("text-portable", lambda path: export(str(model), path, ExportOptions(verify="off")))


@pytest.fixture(autouse=True)
def little_text(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A few short windows; interrupted walks are kept in the test's own folder."""
    monkeypatch.setattr(module, "AMOUNTS", {"normal": Amount(8, 32), "best": Amount(16, 32)})
    monkeypatch.setattr(module, "CHANNELS", Amount(8, 32))
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    path = tmp_path / "words.txt"
    path.write_text(TEXT)
    return path


def numbers(portable: Path, directory: Path | None = None, **options: Any) -> tuple[Numbers, set[str]]:
    """What is chosen, and which sites have numbers of their own."""
    settings = {"precision": "int4", "layout": "nbits", **options}
    asked = OptimizeOptions(**settings)
    model, manifest = ir.load(portable / GRAPH), open_artifact(portable).manifest
    capabilities = find_capabilities(installed=False)
    with chosen_numbers(model, manifest, asked, capabilities, directory or portable, NO_PROGRESS) as chosen:
        for solver in chosen.solvers.values():
            assert isinstance(solver, Stored | StoredStack)
            assert len(solver.read(0, 4).levels) == 4
        return chosen, set(chosen.solvers)


def test_rounding_and_searched_scales_need_no_text(portable: Path, tmp_path: Path) -> None:
    for effort, words in (("round", "rounding"), ("fast", "searched scales")):
        chosen, sites = numbers(portable, tmp_path, effort=effort)
        assert (chosen.chosen_by, chosen.effort, sites) == (words, effort, set())
    assert numbers(portable, effort="round")[0].solver != numbers(portable, effort="fast")[0].solver


@pytest.mark.parametrize("effort", ["normal", "best"])
def test_a_calibration_solves_the_layers(portable: Path, little_text: Path, effort: str) -> None:
    chosen, sites = numbers(portable, effort=effort, calibration=little_text)
    assert len([name for name in sites if "layers.0" in name]) == 4
    assert chosen.effort == effort
    assert chosen.chosen_by == f"GPTQ over {8 * 32 * (1 + (effort == 'best'))} tokens of words.txt"


def test_a_calibration_runs_on_the_runtime_that_is_installed(
    portable: Path, little_text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which may be older than the one that the graph is for."""
    seen: list[bool] = []

    def passes(geometry: Any, options: Any, capabilities: Capabilities) -> Any:
        seen.append(capabilities.query_seqlens)
        return float_passes(geometry, options, capabilities)

    monkeypatch.setattr(module, "float_passes", passes)
    names = set()
    for has in (True, False):
        monkeypatch.setattr(capabilities_module, "has_input", lambda *_, has=has: has)
        names.add(frozenset(numbers(portable, calibration=little_text)[1]))
    assert seen == [True, False]
    assert len(names) == 1


def test_floats_are_left_alone(portable: Path) -> None:
    chosen, sites = numbers(portable, precision="fp32", effort="normal")
    assert (chosen, sites) == (Numbers(), set())


def test_auto_calibrates_small_models_that_have_a_tokenizer(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert numbers(portable)[1]
    assert not numbers(portable, tmp_path)[1]
    monkeypatch.setattr(module, "FEW_WEIGHTS", 1000)
    chosen, sites = numbers(portable)
    assert (chosen.chosen_by, sites) == ("rounding", set())


def test_auto_needs_a_text_that_the_tokenizer_reads(
    portable: Path, monkeypatch: pytest.MonkeyPatch, little_text: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A model of proteins or music knows none of our words; its user names a text, or goes without."""
    monkeypatch.setattr(module, "calibration_text", lambda: " ")
    cuda: dict[str, Any] = {"target": "cuda", "layout": "auto", "cache_precision": "int8"}
    for options in ({}, cuda):
        chosen, sites = numbers(portable, **options)
        assert (chosen.effort, chosen.cache_ranges, sites) == ("fast", None, set())
    assert "llmc's own text has 0 tokens" in caplog.text
    assert numbers(portable, calibration=little_text)[1]
    with pytest.raises(UsageError, match="llmc's own text has 0 tokens, which fill no window"):
        numbers(portable, effort="normal")


def test_a_text_is_a_reason_to_calibrate(portable: Path, little_text: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FEW_WEIGHTS", 0)
    assert numbers(portable, calibration=little_text)[1]


def test_what_is_asked_for_and_cannot_be_is_refused(portable: Path, tmp_path: Path, little_text: Path) -> None:
    with pytest.raises(UsageError, match="without a tokenizer"):
        numbers(portable, tmp_path, effort="normal")
    short = tmp_path / "short.txt"
    short.write_text("w5 w6")
    with pytest.raises(UsageError, match=r"short.txt has 2 tokens, which fill no window of 32"):
        numbers(portable, calibration=short)
    with pytest.raises(UsageError, match="cannot be read"):
        numbers(portable, calibration=tmp_path / "nowhere.txt")
    for effort in ("round", "fast"):
        with pytest.raises(UsageError, match=f"--calibration has no use with --effort {effort}"):
            OptimizeOptions(precision="int4", effort=effort, calibration=little_text)


@pytest.mark.parametrize("target", ["cpu", "cuda", "openvino", "tensorrt-rtx"])
def test_each_target_has_sites_by_the_names_of_its_own_graph(portable: Path, tmp_path: Path, target: str) -> None:
    """What is solved is also written: other numbers than rounding's."""
    contents = []
    for effort in ("round", "normal"):
        options = OptimizeOptions(target=target, precision="int4", effort=effort)
        report = optimize(portable, tmp_path / effort, options)
        record = next(record for record in report.manifest.passes if record.name == "QuantizeWeights")
        assert record.fields["chosen_by"] == {"round": "rounding"}.get(
            effort, "GPTQ over 256 tokens of llmc's own text"
        )
        assert report.manifest.effort == effort
        contents.append((tmp_path / effort / DATA).read_bytes())
    assert len(contents[0]) == len(contents[1])
    changed = np.frombuffer(contents[0], np.uint8) != np.frombuffer(contents[1], np.uint8)
    assert changed.mean() > 0.03


def test_scales_move_into_weights_before_these_are_solved(portable: Path) -> None:
    """What is solved is a weight with its columns scaled, and the pass that is handed on scales it so again."""
    asked = OptimizeOptions(precision="int4", effort="normal")
    model, manifest = ir.load(portable / GRAPH), open_artifact(portable).manifest
    capabilities, plan = find_capabilities(installed=False), make_plan(asked)
    with chosen_numbers(model, manifest, asked, capabilities, portable, NO_PROGRESS) as chosen:
        moving = chosen.moved_scales
        assert moving is not None
        assert moving.chosen_by == "root mean squares over 256 tokens of llmc's own text"
        run_passes(model, float_passes(manifest.model, asked, capabilities))
        plain = {site.name: site.weights[0][1].rows(0, 8) for site in find_sites(model)}
        assert moving(model).modified
        for site in find_sites(model):
            scheme, weight = site.placement(plan).scheme, site.weights[0][1]
            if site.name not in moving.scales or scheme is None:
                continue
            assert set(np.log2(moving.scales[site.name])) > {0}
            stored = chosen.solvers[site.name]
            assert isinstance(stored, Stored)
            solved = dequantize(stored.read(0, 8), scheme, weight.stored_shape[1])
            scaled = weight.rows(0, 8)
            np.testing.assert_array_equal(scaled, plain[site.name] * moving.scales[site.name])
            assert np.abs(solved - scaled).mean() < 0.2 * np.abs(scaled).mean()


@pytest.mark.parametrize(
    ("target", "options"),
    [
        ("cuda", {"effort": "normal"}),
        ("openvino", {"effort": "normal"}),
        ("cpu", {"effort": "fast"}),
        ("cpu", {"effort": "round"}),
        ("cpu", {"effort": "normal", "precision": "int8"}),
    ],
)
def test_scales_stay_where_nothing_rounds_activations_to_8_bits(
    portable: Path, target: str, options: dict[str, str]
) -> None:
    settings = {"layout": "auto", "target": target, **options}
    assert numbers(portable, **settings)[0].moved_scales is None


def test_the_manifest_says_how_scales_were_found(portable: Path, tmp_path: Path) -> None:
    report = optimize(portable, tmp_path / "target", OptimizeOptions(precision="int4", effort="normal"))
    record = next(record for record in report.manifest.passes if record.name == "MoveScales")
    assert record.fields == {"chosen_by": "root mean squares over 256 tokens of llmc's own text"}
    # Two layers, of which each has a gate with its upper product, and what closes their block.
    assert record.counts == record.expected == {"scaled": 4}


def test_export_and_optimize_give_the_bytes_of_compile(portable: Path, tmp_path: Path, little_text: Path) -> None:
    options = OptimizeOptions(precision="int4", effort="normal", calibration=little_text)
    optimize(portable, tmp_path / "target", options)
    source = text_model(Shared.current())
    compile_model(str(source), tmp_path / "engine", CompileOptions(ExportOptions(verify="off"), options))
    assert (tmp_path / "target" / DATA).read_bytes() == (tmp_path / "engine" / DATA).read_bytes()


def test_a_graph_without_weights_is_not_calibrated(tmp_path: Path) -> None:
    source = text_model(Shared.current())
    options = OptimizeOptions(target="cuda", precision="int4", effort="normal")
    exporting = ExportOptions(verify="off", weights="none")
    report = compile_model(str(source), tmp_path / "engine", CompileOptions(exporting, options))
    record = next(record for record in report.manifest.passes if record.name == "QuantizeWeights")
    assert record.fields["chosen_by"] == "rounding"


def test_an_interrupted_calibration_leaves_nothing_in_the_output(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, little_text: Path
) -> None:
    from llmc.compiler.calibration.walk import Walk

    monkeypatch.setattr(Walk, "_advance", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
    output = tmp_path / "folder" / "target"
    output.parent.mkdir()
    with pytest.raises(KeyboardInterrupt):
        optimize(portable, output, OptimizeOptions(precision="int4", calibration=little_text))
    assert list(output.parent.iterdir()) == []


def test_a_copy_without_its_tokenizer_is_searched(portable: Path, tmp_path: Path) -> None:
    shutil.copytree(portable, tmp_path / "copy", ignore=shutil.ignore_patterns("tokenizer.json"))
    manifest = open_artifact(portable).manifest
    assert "tokenizer.json" in manifest.files
    assert numbers(portable, tmp_path / "copy")[0].chosen_by == "searched scales"


@pytest.fixture
def little_cache_text(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CACHE", Amount(4, 32))


@pytest.mark.usefixtures("little_cache_text")
@pytest.mark.parametrize("precision", ["fp16", "int4"])
def test_a_cache_in_8_bits_has_ranges_over_a_text(portable: Path, little_text: Path, precision: str) -> None:
    """Whatever becomes of the weights; and no golden data are needed."""
    options = {"target": "cuda", "precision": precision, "layout": "auto", "effort": "auto"}
    found, sites = numbers(portable, cache_precision="int8", **options)
    assert found.cache_ranges is not None
    assert len(found.cache_ranges) == open_artifact(portable).manifest.model.num_layers
    reaches = [reach for layer in found.cache_ranges for reach in layer or ()]
    assert len(reaches) == 2 * len(found.cache_ranges)
    assert all((reach.high >= reach.low).all() and reach.magnitudes.min() > 0 for reach in reaches)
    assert bool(sites) == (precision == "int4")
    other, _ = numbers(portable, cache_precision="fp8", calibration=little_text, **options)
    assert other.cache_ranges is not None
    assert other.cache_ranges[0] is not None
    assert not np.array_equal(other.cache_ranges[0][0].high, reaches[0].high), "another text"
    assert numbers(portable, **options)[0].cache_ranges is None


@pytest.mark.usefixtures("little_cache_text")
def test_an_int8_cache_without_golden_data(portable: Path, tmp_path: Path) -> None:
    assert not (portable / "golden.npz").exists()
    optimize(portable, tmp_path / "target", OptimizeOptions(target="cuda", cache_precision="int8", strict=True))
    graph = ir.load(tmp_path / "target" / GRAPH).graph
    types = {value.dtype for value in graph.inputs if (value.name or "").startswith("past_key_values.")}
    assert types == {ir.DataType.INT8}


@pytest.mark.usefixtures("little_cache_text")
def test_a_cache_without_a_text_or_a_graph_that_runs_has_no_ranges(
    portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from llmc.compiler.base.errors import EngineError
    from llmc.compiler.calibration.walk import Walk

    options: dict[str, Any] = {"target": "cuda", "precision": "fp16", "layout": "auto", "cache_precision": "int8"}
    shutil.copytree(portable, tmp_path / "copy", ignore=shutil.ignore_patterns("tokenizer.json"))
    assert numbers(portable, tmp_path / "copy", **options)[0].cache_ranges is None

    def refuse(*_: object, **__: object) -> None:
        raise EngineError("no kernel")

    monkeypatch.setattr(Walk, "run", refuse)
    assert numbers(portable, **options)[0].cache_ranges is None
    assert (
        "the cache's scales come from the golden data, if there are any, and not from a text: no kernel"
        in caplog.text
    )


@pytest.fixture(scope="session")
def expert_portable() -> Path:
    shared = Shared.current()
    model = expert_model(shared)
    return shared.make("expert-portable", lambda path: export(str(model), path, ExportOptions(verify="off")))


def test_experts_count_among_the_weights_that_are_few(expert_portable: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In each of two layers 3 * 32 x 64 of 4 experts, and 64 x (64 + 32 + 32 + 64) of attention."""
    count = 2 * (4 * 3 * 32 * 64 + 64 * 192)
    for few, effort in ((count, "normal"), (count - 1, "round")):
        monkeypatch.setattr(module, "FEW_WEIGHTS", few)
        assert numbers(expert_portable, effort="auto")[0].effort == effort


@pytest.mark.parametrize(("target", "precision"), [("cpu", "int4"), ("cuda", "int4"), ("cpu", "int8")])
def test_experts_are_calibrated_and_written(
    expert_portable: Path, tmp_path: Path, target: str, precision: str
) -> None:
    """The graph has their numbers, and verification measures them; what differs from searched ones are they."""
    contents = []
    for known in (True, False):
        with pytest.MonkeyPatch.context() as patch:
            if not known:
                patch.setattr("llmc.compiler.calibration.calibrate.is_known", lambda _: False)
            options = OptimizeOptions(target=target, precision=precision, effort="normal")
            report = optimize(expert_portable, tmp_path / str(known), options)
        assert report.manifest.effort == "normal"
        contents.append(ir.load(tmp_path / str(known) / GRAPH).graph.initializers)
    experts = [name for name in contents[0] if "expert" in name and name.endswith(".packed")]
    assert len(experts) == 4
    for name in experts:
        one, other = (initializers[name].const_value for initializers in contents)
        assert one is not None
        assert other is not None
        assert (one.numpy() != other.numpy()).mean() > 0.03


@pytest.mark.parametrize("factor", [1.0, 1.03])
def test_the_ledger_holds_experts_to_what_their_numbers_stand_for(
    expert_portable: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, factor: float
) -> None:
    """Scales of one layer that are written larger than they were solved: the pass and the node are named."""
    write = emit_qmoe.packed_parts

    def planted(emission: Emission, stem: str, *rest: Any) -> dict[str, ir.Value]:
        parts = write(emission, stem, *rest)
        scales = parts["scales"].const_value
        assert isinstance(scales, QuantizedPart)
        if ".1." in stem:
            scales.function = lambda solved: solved.scales * np.float32(factor)
        return parts

    monkeypatch.setattr(emit_qmoe, "packed_parts", planted)
    options = OptimizeOptions(precision="int4", effort="normal")
    if factor == 1:
        optimize(expert_portable, tmp_path / "target", options, verify=True)
        return
    with pytest.raises(LedgerError, match=r"(?s)QuantizeWeights.*layers\.1\.\S*experts"):
        optimize(expert_portable, tmp_path / "target", options, verify=True)
