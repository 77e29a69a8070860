"""export: what it hands on, and what it shows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

from typer.testing import Result

from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.json_record import encode
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import Progress

Run = Callable[..., Result]
Replace = Callable[..., Mock]


def test_export_defaults(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    export = replace_driver("export", manifest)
    result = llmc("export", "org/model", "-o", "out")
    assert result.exit_code == 0, result.stderr
    assert export.call_args.args == ("org/model", Path("out"), ExportOptions())
    assert export.call_args.kwargs["overwrite"] is False
    assert "smollm2-135m (gguf)" in result.stdout
    assert "Apache-2.0" in result.stdout


def test_export_options(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    export = replace_driver("export", manifest)
    options = ("--dtype", "bf16", "--overwrite", "--trust-remote-code", "--verify", "off")
    llmc("export", "m", "-o", "out", *options, "--model-path", "a", "--model-path", "b")
    expected = ExportOptions(dtype="bf16", verify="off", trust_remote_code=True, search_path=(Path("a"), Path("b")))
    assert export.call_args.args[2] == expected
    assert export.call_args.kwargs["overwrite"] is True


def test_a_portable_graph_has_its_weights(llmc: Run) -> None:
    """Without them ``optimize`` would refuse it; leaving them out is for ``compile``."""
    result = llmc("export", "m", "-o", "out", "--weights", "none")
    assert result.exit_code == 2
    assert "No such option: --weights" in result.stderr


def test_model_path_from_the_environment(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    export = replace_driver("export", manifest)
    directories = {"LLMC_MODEL_PATH": os.pathsep.join(["/a dir", "/b"])}
    llmc("export", "m", "-o", "out", env=directories)
    assert export.call_args.args[2].search_path == (Path("/a dir"), Path("/b"))
    llmc("export", "m", "-o", "out", "--model-path", "c", env=directories)
    assert export.call_args.args[2].search_path == (Path("c"),)


def test_export_json(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    replace_driver("export", manifest)
    result = llmc("export", "m", "-o", "out", "--json")
    assert json.loads(result.stdout) == {"directory": "out", "manifest": encode(manifest)}
    assert result.stderr == ""


def test_what_a_library_prints_does_not_reach_stdout(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    def export(*arguments: object, progress: Progress, **options: object) -> Manifest:
        print("a stray line")
        progress.start("Tracing")
        return manifest

    replace_driver("export", export)
    result = llmc("export", "m", "-o", "out", "--json")
    assert "stray" not in result.stdout
    assert "a stray line" in result.stderr
    json.loads(result.stdout)


def test_log_lines(llmc: Run, replace_driver: Replace, manifest: Manifest) -> None:
    def export(*arguments: object, progress: Progress, **options: object) -> Manifest:
        import logging

        progress.start("Writing weights", 2_500_000, "bytes")
        progress.advance(2_500_000)
        logging.getLogger("llmc.compiler.x").warning("odd [thing]")
        return manifest

    replace_driver("export", export)
    assert llmc("export", "m", "-o", "out").stderr == "llmc: warning: odd [thing]\n"
    assert llmc("export", "m", "-o", "out", "--quiet").stderr == ""
    detailed = llmc("export", "m", "-o", "out", "-v").stderr.splitlines()
    assert detailed[0] == "llmc: Writing weights (2.5 MB)"
    assert detailed[2].startswith("llmc: Writing weights: done in ")
