"""Are the graphs and weights still those of another checkout? ``python -m tests.same_bytes record|compare FILE``.

In: a file of hashes. ``record`` writes it; ``compare`` makes everything again and ends with 1 where a hash differs.
Made are SmolLM2-135M and 24 tiny models, for every target and precision whose graph can be made without a GPU,
through the command line alone, so that the same script runs in any two checkouts. Manifests are left out: they say
who made the artifact. So are files that a runtime writes for itself (an engine of OpenVINO or TensorRT).
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from llmc.compiler.cli.app import app

from .conformance.test_representative import REPRESENTATIVE
from .conformance.tiny_models import make_model

GRAPHS = ("model.onnx", "model.onnx.data", "engine.onnx", "golden.npz", "genai_config.json")
BUILT = ("cpu", "cuda")
"""Targets whose engines are a graph over the weights that are there."""
PRECISIONS = {
    "cpu": ("fp32", "int8", "int4"),
    "cuda": ("fp16", "bf16", "int8", "int4", "fp8"),
    "tensorrt": ("fp16", "bf16", "int8", "int4", "fp8", "nvfp4"),
    "tensorrt-rtx": ("fp16", "bf16", "int8", "int4", "fp8", "nvfp4"),
    "openvino": ("fp32", "int8", "int4"),
}
MORE = (
    ("cpu", "int4", "--symmetric", "--head", "int4"),
    ("cpu", "int4", "--block-size", "64", "--kv", "grow", "--logits", "all"),
    ("cpu", "int8", "--block-size", "16"),
    ("cuda", "int4", "--block-size", "128", "--activations", "bf16", "--logits", "all"),
    ("cuda", "fp16", "--kv-precision", "fp8"),
    ("cuda", "fp16", "--kv", "grow"),
    ("tensorrt", "int4", "--symmetric", "--head", "int4", "--block-size", "64"),
    ("openvino", "int4", "--head", "int4", "--symmetric"),
)
"""Options beside the defaults."""
TINY = (
    *(("cpu", "fp32"), ("cpu", "int8"), ("cpu", "int4"), ("cuda", "fp16"), ("cuda", "int4"), ("cuda", "fp8")),
    *(("tensorrt-rtx", "fp16"), ("tensorrt-rtx", "int4"), ("openvino", "int4")),
)
"""What is made of a tiny model."""


def hash_files(directory: Path) -> dict[str, str]:
    """SHA-256 of each graph, weights file and golden data in an artifact."""
    files = [directory / name for name in GRAPHS if (directory / name).exists()]
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest()[:20] for path in files}


def run(*arguments: str) -> str:
    """The outcome of a command: empty, or the sentence with which it refused."""
    said = io.StringIO()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
        try:
            app(list(arguments))
        except SystemExit as end:
            return "" if not end.code else f"exit {end.code}"
    return ""


def make(
    model: str, folder: Path, variants: Sequence[tuple[str, ...]], verify: str
) -> Iterator[tuple[str, dict[str, str]]]:
    """Export a model, then each variant of it; the name of each and its hashes."""
    portable, graph, engine = folder / "portable", folder / "graph", folder / "engine"
    failed = run("export", model, "-o", str(portable), "--verify", verify, "--quiet")
    yield "portable", {"failed": failed} if failed else hash_files(portable)
    for target, precision, *options in variants if not failed else ():
        name = " ".join([target, precision, *options])
        asked = ("--target", target, "--precision", precision, *options)
        failed = run("optimize", str(portable), "-o", str(graph), *asked, "--quiet")
        yield name, {"failed": failed} if failed else hash_files(graph)
        if not failed and target in BUILT:
            failed = run("build", str(graph), "-o", str(engine), "--quiet")
            made = hash_files(engine)
            # ONNX Runtime writes a float32 engine's graph itself, in an order of its own.
            yield f"{name} engine", {"failed": failed} if failed else made
        for done in (graph, engine):
            shutil.rmtree(done, ignore_errors=True)
    shutil.rmtree(portable, ignore_errors=True)


def every_hash(only: str) -> dict[str, dict[str, str]]:
    """Everything that this script makes, by name."""
    made: dict[str, dict[str, str]] = {}
    with tempfile.TemporaryDirectory(prefix="llmc-bytes-") as name:
        folder = Path(name)
        if only != "smollm2":
            for model_type in REPRESENTATIVE:
                source = folder / model_type
                make_model(model_type).save_pretrained(source)
                for what, hashes in make(str(source), folder, TINY, "off"):
                    made[f"{model_type} {what}"] = hashes
                    print(model_type, what, hashes, flush=True)
            source = folder / "llama"
            for what, hashes in make(str(source), folder, [*MORE, ("cuda", "fp16", "--kv-precision", "int8")], "on"):
                made[f"golden llama {what}"] = hashes
                print("golden llama", what, hashes, flush=True)
        if only != "tiny":
            variants = [(target, each) for target, precisions in PRECISIONS.items() for each in precisions]
            for what, hashes in make("smollm2-135m", folder, [*variants, *MORE], "off"):
                made[f"smollm2 {what}"] = hashes
                print("smollm2", what, hashes, flush=True)
    return made


def main() -> int:
    """Record or compare; 1 where something differs."""
    parser = argparse.ArgumentParser(prog="python -m tests.same_bytes", description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("record", "compare"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--only", choices=("all", "smollm2", "tiny"), default="all")
    options = parser.parse_args()
    made = every_hash(options.only)
    if options.what == "record":
        options.file.write_text(json.dumps(made, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        print(f"{len(made)} artifacts")
        return 0
    before = json.loads(options.file.read_text(encoding="utf-8"))
    differing = [
        f"{name} {file}: {before.get(name, {}).get(file)} was, {hashes.get(file)} is"
        for name, hashes in made.items()
        for file in sorted({*hashes, *before.get(name, {})})
        if before.get(name, {}).get(file) != hashes.get(file)
    ]
    print("\n".join(differing) or f"the same bytes in {len(made)} artifacts")
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
