from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.artifact.model_card import Speed, SpeedRow, model_card, read_speed
from llmc.compiler.base.errors import UsageError

MEASURED = {
    "engine.onnx": {
        "mean KL divergence": 0.034,
        "top-1 agreement": 0.91,
        "largest logit error": 0.52,
        "mean KL divergence, long text": 0.06,
        "top-1 agreement, long text": 0.88,
    }
}


@pytest.fixture
def known(manifest: Manifest) -> Manifest:
    """Of a model on the hub, measured."""
    source = replace(manifest.source, name="org/model", commit="c0" * 20)
    return replace(manifest, source=source, measured=MEASURED, effort="fast", plan={"linear": "q4", "head": "q6"})


def metadata(card: str) -> list[str]:
    opening, lines, _ = card.split("---\n", 2)
    assert opening == ""
    return lines.splitlines()


def test_metadata(known: Manifest) -> None:
    lines = metadata(model_card(known, "me/x"))
    assert lines[:6] == [
        'base_model: "org/model"',
        "base_model_relation: quantized",
        'license: "apache-2.0"',
        "library_name: llmc",
        "pipeline_tag: text-generation",
        "tags:",
    ]
    assert {'- "llmc"', '- "onnx"', '- "onnxruntime"', '- "int4"'} <= set(lines)


def test_a_precision_that_no_weight_has_is_none(known: Manifest) -> None:
    """It is what was asked for; weights are what they are."""
    floats = model_card(replace(known, stored={"float": 3}), "me/x")
    assert '- "int4"' not in metadata(floats)
    assert "base_model_relation: quantized" not in metadata(floats)
    assert "| weights | int4 asked for, none made: 3 float |" in floats
    mixed = model_card(replace(known, stored={"float": 1, "int4": 3}), "me/x")
    assert '- "int4"' in metadata(mixed)
    assert "| weights stored in | 3 int4, 1 float |" in mixed


def test_metadata_says_nothing_that_is_not_known(manifest: Manifest) -> None:
    lines = metadata(model_card(replace(manifest, source=replace(manifest.source, licence=None)), "me/x"))
    assert not [line for line in lines if line.startswith(("base_model", "license"))]
    terms = replace(manifest.source, licence='The "Toy" terms: no')
    lines = metadata(model_card(replace(manifest, source=terms), "me/x"))
    assert "license: other" in lines
    assert 'license_name: "The \\"Toy\\" terms: no"' in lines
    floats = replace(manifest, precision="fp16", source=replace(manifest.source, name="org/model"))
    assert "base_model_relation: quantized" not in metadata(model_card(floats, "me/x"))


def test_figures_are_those_of_the_manifest(known: Manifest) -> None:
    card = model_card(known, "me/x")
    assert "Noticeable loss against the model: mean KL divergence 0.06, the same first choice at 88%" in card
    assert "| `engine.onnx` | prompts | 0.034 | 91.0% | 0.52 |" in card
    assert "| `engine.onnx` | a long text | 0.06 | 88.0% |  |" in card
    assert "not compared" not in card
    assert "It was not compared with the model when it was made." in model_card(replace(known, measured={}), "me/x")


def test_how_it_is_made_and_used(known: Manifest) -> None:
    card = model_card(known, "me/x", "v1")
    commit = "c0" * 20
    assert f"llmc compile org/model --revision {commit} -o DIR --target cpu --precision int4 --effort fast\n" in card
    assert "    hf download me/x --revision v1 --local-dir x\n    llmc verify x\n    llmc generate x -p" in card
    assert "| weights of linear | q4 |" in card
    assert "| made with | llmc 0.1.0 |" in card
    portable = replace(known, kind="portable", target=None, engine=None, plan={}, effort=None, precision="fp32")
    card = model_card(portable, "me/x")
    assert f"llmc export org/model --revision {commit} -o DIR\n" in card
    assert "hf download me/x --local-dir x\n    llmc verify x\n    llmc optimize x -o target" in card


def test_the_same_manifest_gives_the_same_card(known: Manifest) -> None:
    assert model_card(known, "me/x") == model_card(Manifest.from_json(known.to_json()), "me/x")


def report(**changes: Any) -> dict[str, Any]:
    """As ``llmc bench --json`` writes it, as far as it is read."""

    def result(label: str, decode: float) -> dict[str, Any]:
        case = {"name": "x", "prompt": 512, "gen": 128, "batch": 1}
        speeds = {"prefill_tokens_per_s": {"median": 2345.6}, "decode_tokens_per_s": {"median": decode}}
        return {"label": label, "case": case, **speeds}

    return {
        "machine": {"cpu_model": "Toy 9", "physical_cores": 2, "gpus": []},
        "subjects": [{"label": "a", "path": "out/engine"}, {"label": "b", "path": "out/other"}],
        "results": [result("a", 270.25), result("b", 1.0)],
    } | changes


def test_speed_of_a_benchmark(known: Manifest, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_text(json.dumps(report()))
    speed = read_speed(path, Path("elsewhere/engine"))
    assert speed == Speed("Toy 9, 2 cores", (SpeedRow(512, 128, 1, 2345.6, 270.25),))
    card = model_card(known, "me/x", speed=speed)
    assert "Medians of `llmc bench`, Toy 9, 2 cores." in card
    assert "| 512 | 128 | 1 | 2,346 | 270.2 |" in card
    assert "## Speed" not in model_card(known, "me/x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is no report of a benchmark"),
        ("[]", "is no report of a benchmark"),
        ("[" * 100_000, "is no report of a benchmark"),
        (json.dumps(report(results=[{"label": "a"}])), "is no report of a benchmark"),
        (json.dumps(report(subjects=[])), "has no figures of out/engine; measure it with llmc bench out/engine"),
    ],
)
def test_what_is_no_report(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "r.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message):
        read_speed(path, Path("out/engine"))
    with pytest.raises(UsageError, match="is no report"):
        read_speed(tmp_path / "none.json", Path("out/engine"))
