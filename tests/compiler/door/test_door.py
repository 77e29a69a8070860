"""What ``import llmc`` gives, what it costs, and whether its page tells the truth."""

from __future__ import annotations

import inspect
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import llmc

from ...shared import Shared
from ..tiny_text_model import text_model

PAGE = Path(__file__).parents[3] / "docs" / "python.md"
HEAVY = ("torch", "onnx", "onnx_ir", "onnxruntime", "transformers", "numpy", "tokenizers", "typer", "rich")


def test_the_public_names() -> None:
    """A name more is a promise, a name less breaks somebody's program: change both with a line in CHANGELOG.md."""
    names = """
        CompileOptions CompileReport Engine EngineOptions ExportOptions LlmcError OptimizeOptions Progress
        SamplingParams compile generate open
    """
    assert sorted(names.split()) == sorted(llmc.__all__)
    assert all(inspect.getdoc(getattr(llmc, name)) for name in llmc.__all__)


def test_signatures() -> None:
    """Which arguments are named is part of the promise."""
    shapes = {
        name: [
            f"{'*' if parameter.kind is inspect.Parameter.KEYWORD_ONLY else ''}{parameter.name}"
            for parameter in inspect.signature(function).parameters.values()
        ]
        for name, function in (
            ("compile", llmc.compile),
            ("open", llmc.open),
            ("generate", llmc.generate),
            ("Engine.generate", llmc.Engine.generate),
            ("Engine.stream", llmc.Engine.stream),
            ("Engine.logits", llmc.Engine.logits),
        )
    }
    asked = ["*max_tokens", "*stop"]
    assert shapes == {
        "compile": ["model", "output", "options", "*overwrite", "*progress"],
        "open": ["directory", "*threads"],
        "generate": ["directory", "prompt", "sampling", *asked, "*threads"],
        "Engine.generate": ["self", "prompt", "sampling", *asked],
        "Engine.stream": ["self", "prompt", "sampling", *asked],
        "Engine.logits": ["self", "prompt"],
    }


def test_the_import_is_light() -> None:
    code = "import json, sys, llmc; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(json.loads(done.stdout)) & set(HEAVY)


def test_the_package_says_that_it_is_typed() -> None:
    assert (PAGE.parents[1] / "compiler" / "door" / "py.typed").is_file()


def test_the_examples_of_the_page(
    shared: Shared, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """In one program, in their order, with a tiny model in the place of SmolLM2."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    program = "\n".join(blocks)
    assert len(blocks) >= 6
    assert program.count('"smollm2-135m"') == 2
    exec(compile(program.replace('"smollm2-135m"', repr(str(text_model(shared)))), str(PAGE), "exec"), {})
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("fp32 as the model: mean KL divergence ")
    assert any(line.startswith("QuantizeWeights ") for line in lines)
    assert "out/nothing" in lines[-1]
