"""The page of an artifact on the hub (``README.md``): what it is and keeps of its model, how it was made and is used.

In: a manifest, the name of the repository, and a benchmark's figures where there are any. Out: Markdown behind the
metadata that the hub reads (https://huggingface.co/docs/hub/model-cards). Every figure in it was measured.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.artifact.loss import ALONG_TEXT, KL, LOGIT_ERROR, TOP1, loss_of
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.input_file import read_input

_FLOATS = frozenset({"fp32", "fp16", "bf16"})
_HUB_ID = re.compile(r"[\w][\w.-]*/[\w][\w.-]*")
_LICENCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.-]*")


@dataclass(frozen=True)
class SpeedRow:
    """One case of a benchmark.

    Attributes:
        prompt: Tokens of the prompt.
        generated: Tokens that follow.
        batch: Rows at once.
        prefill: Median tokens of the prompt a second.
        decode: Median tokens a second, of all rows.
    """

    prompt: int
    generated: int
    batch: int
    prefill: float
    decode: float


@dataclass(frozen=True)
class Speed:
    """What a benchmark measured of one engine.

    Attributes:
        machine: In words.
        rows: Its cases.
    """

    machine: str
    rows: tuple[SpeedRow, ...]


def read_speed(path: Path, directory: Path) -> Speed:
    """The figures of ``directory`` in a report that ``llmc bench --json`` wrote.

    Raises:
        UsageError: no such report, or none of this artifact.
    """
    try:
        report = json.loads(read_input(path).decode("utf-8"))
        labels = {item["label"] for item in report["subjects"] if _same(item["path"], directory)}
        rows = tuple(_speed_row(item) for item in report["results"] if item["label"] in labels)
        machine, gpus = report["machine"], report["machine"]["gpus"]
        words = f"{machine['cpu_model']}, {machine['physical_cores']} cores"
        speed = Speed(", ".join([words, *(gpu["name"] for gpu in gpus)]), rows)
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no report of a benchmark ({type(error).__name__}); write one with llmc bench {directory} "
            f"--json {path}"
        ) from error
    if not rows:
        raise UsageError(
            f"{path} has no figures of {directory}; measure it with llmc bench {directory} --json {path}"
        )
    return speed


def model_card(manifest: Manifest, repository: str, revision: str = "main", speed: Speed | None = None) -> str:
    """The text of ``README.md``; the same manifest gives the same text."""
    parts = [
        _metadata(manifest),
        _title(manifest, repository),
        _use(manifest, repository, revision),
        _quality(manifest),
        *([_speed(speed)] if speed is not None else []),
        _origin(manifest),
    ]
    return "\n\n".join(parts) + "\n"


def _same(path: str, directory: Path) -> bool:
    return Path(path).resolve() == directory.resolve() or Path(path).name == directory.resolve().name


def _speed_row(item: Mapping[str, Any]) -> SpeedRow:
    case = item["case"]
    prefill, decode = (float(item[f"{kind}_tokens_per_s"]["median"]) for kind in ("prefill", "decode"))
    return SpeedRow(int(case["prompt"]), int(case["gen"]), int(case["batch"]), prefill, decode)


def _metadata(manifest: Manifest) -> str:
    source = manifest.source
    lines = []
    if _HUB_ID.fullmatch(source.name):
        lines.append(f"base_model: {json.dumps(source.name)}")
        if manifest.precision not in _FLOATS and manifest.stored.keys() != {"float"}:
            lines.append("base_model_relation: quantized")
    if source.licence is not None:
        known = _LICENCE_ID.fullmatch(source.licence)
        lines.append(f"license: {json.dumps(source.licence.lower()) if known else 'other'}")
        lines += [] if known else [f"license_name: {json.dumps(source.licence)}"]
    lines += ["library_name: llmc", "pipeline_tag: text-generation", "tags:"]
    return "\n".join(["---", *lines, *(f"- {json.dumps(tag)}" for tag in _tags(manifest)), "---"])


def _tags(manifest: Manifest) -> list[str]:
    runtime = manifest.engine.runtime.partition("-")[0] if manifest.engine is not None else "onnxruntime"
    precision = [manifest.precision] if manifest.as_asked else []
    return list(dict.fromkeys(["llmc", "onnx", runtime, manifest.model.model_type, *precision]))


def _title(manifest: Manifest, repository: str) -> str:
    kinds = {"engine": "An engine", "target": "A graph", "portable": "A portable ONNX graph"}
    target = f" for {manifest.target}" if manifest.target is not None else ""
    return (
        f"# {repository.rpartition('/')[2]}\n\n{kinds[manifest.kind]}{target} that llmc made of "
        f"{manifest.source.name}, with weights in {manifest.weights_label}."
    )


def _use(manifest: Manifest, repository: str, revision: str) -> str:
    name = repository.rpartition("/")[2]
    branch = "" if revision == "main" else f" --revision {revision}"
    use = {
        "engine": f'llmc generate {name} -p "The moon pulls the sea,"',
        "target": f"llmc build {name} -o engine",
        "portable": f"llmc optimize {name} -o target",
    }[manifest.kind]
    lines = [f"hf download {repository}{branch} --local-dir {name}", f"llmc verify {name}", use]
    return "\n".join(["## Use", "", *(f"    {line}" for line in lines)])


def _quality(manifest: Manifest) -> str:
    loss = loss_of(manifest.measured)
    if loss is None:
        return "## What it keeps of the model\n\nIt was not compared with the model when it was made."
    rows = list(_quality_rows(manifest.measured))
    return "\n".join(
        [
            "## What it keeps of the model",
            "",
            f"{loss.sentence[0].upper()}{loss.sentence[1:]}.",
            "",
            *_table(("graph", "along", "mean KL divergence, nats", "same first choice", "largest logit error"), rows),
            "",
            "Measured when it was made, against the model in float32 with eager attention (transformers), on the "
            "prompts and the text that it carries in `golden.npz`; `llmc verify` measures it again.",
        ]
    )


def _quality_rows(measured: Mapping[str, Mapping[str, float]]) -> Iterator[tuple[str, ...]]:
    for graph, metrics in sorted(measured.items()):
        for words, part in (("prompts", ""), ("a long text", ALONG_TEXT)):
            if KL + part in metrics:
                first, logit = metrics.get(TOP1 + part), metrics.get(LOGIT_ERROR + part)
                yield (
                    f"`{graph}`",
                    words,
                    f"{metrics[KL + part]:.2g}",
                    "" if first is None else f"{first:.1%}",
                    "" if logit is None else f"{logit:.2g}",
                )


def _speed(speed: Speed) -> str:
    rows = [
        (str(row.prompt), str(row.generated), str(row.batch), f"{row.prefill:,.0f}", f"{row.decode:,.1f}")
        for row in speed.rows
    ]
    heads = ("prompt", "generated", "rows", "prompt tokens/s", "tokens/s")
    return "\n".join(["## Speed", "", f"Medians of `llmc bench`, {speed.machine}.", "", *_table(heads, rows)])


def _origin(manifest: Manifest) -> str:
    source = manifest.source
    facts = [
        ("model", source.name + (f", commit `{source.commit}`" if source.commit else "")),
        ("licence", source.licence or "the checkpoint states none; that of the model holds"),
        ("architecture", f"{manifest.model.model_type}, {manifest.model.num_layers} layers"),
        ("weights", manifest.weights_label),
        ("weights stored in", manifest.stored_text),
        *((f"weights of {kind}", scheme) for kind, scheme in sorted(manifest.plan.items())),
        ("target", manifest.target or "any ONNX runtime"),
        ("runtime", manifest.engine.runtime if manifest.engine is not None else ""),
        ("numbers looked for", manifest.effort or ""),
        ("longest context", f"{manifest.max_context} tokens" if manifest.max_context is not None else ""),
        ("size", f"{sum(record.bytes for record in manifest.files.values()) / 1e6:,.1f} MB"),
        ("made with", ", ".join(f"{name} {version}" for name, version in sorted(manifest.tools.items()))),
    ]
    rows = [(name, value.replace("|", "\\|")) for name, value in facts if value]
    return "\n".join(["## How it was made", "", f"    {_command(manifest)}", "", *_table(("what", "value"), rows)])


def _command(manifest: Manifest) -> str:
    """The command that makes it again, as far as the manifest says how it was asked for."""
    source = manifest.source
    words = ["llmc", "export" if manifest.target is None else "compile", source.name]
    words += ["--revision", source.commit] if source.commit is not None else []
    words += ["-o", "DIR"]
    if manifest.target is not None:
        words += ["--target", manifest.target, "--precision", manifest.precision]
    words += ["--effort", manifest.effort] if manifest.effort is not None else []
    return " ".join(words)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [f"| {' | '.join(row)} |" for row in (heads, *rows)]
    return [lines[0], "|" + "---|" * len(heads), *lines[1:]]
