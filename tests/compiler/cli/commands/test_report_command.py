"""report: which files are joined, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import Result

from llmc.compiler.base.errors import UsageError

Run = Callable[..., Result]


def benchmark(label: str) -> dict[str, Any]:
    case = {"prompt": 8, "gen": 4, "batch": 1}
    return {"subjects": [{"label": label}], "results": [{"label": label, "case": case, "decode_tokens_per_s": 12.0}]}


def write(path: Path, value: object) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def test_runs_are_joined(llmc: Run, tmp_path: Path) -> None:
    files = [write(tmp_path / f"{name}.json", benchmark("int4")) for name in ("laptop", "server")]
    quality = write(tmp_path / "quality.json", {"artifacts": [{"label": "int4", "mean_kl": 0.05}]})
    output = tmp_path / "new" / "report.html"
    result = llmc("report", *files, quality, "-o", output)
    assert result.exit_code == 0, result.stderr
    assert result.stdout == f"{output}\n"
    text = output.read_text()
    for words in ("int4 · laptop", "int4 · server", "Quality against speed", "Benchmark of 2 engines in 2 runs"):
        assert words in text


def test_files_of_the_same_name_are_told_apart(llmc: Run, tmp_path: Path) -> None:
    files = [write(tmp_path / folder / "run.json", benchmark("int4")) for folder in ("a", "b")]
    result = llmc("report", *files, "-o", tmp_path / "report.html", "--json")
    assert json.loads(result.stdout) == {"file": str(tmp_path / "report.html"), "engines": 2}
    assert f"int4 · {tmp_path}/a/run" in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("not json", "is not valid JSON"),
        ("[" * 100_000, "is not valid JSON"),
        ("[]", "is no report of llmc bench or llmc eval"),
        ('{"results": null}', "is no report of llmc bench or llmc eval"),
        ('{"artifacts": []}', "no benchmark among the files"),
    ],
)
def test_other_files_are_refused(llmc: Run, tmp_path: Path, content: str, words: str) -> None:
    file, output = write(tmp_path / "a.json", content), tmp_path / "report.html"
    result = llmc("report", file, "-o", output)
    assert result.exit_code == UsageError.exit_code
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert not output.exists()


def test_files_that_cannot_be_read_or_written(llmc: Run, tmp_path: Path) -> None:
    file = write(tmp_path / "a.json", benchmark("int4"))
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe")
    for names, output, words in (
        ((tmp_path / "none.json",), tmp_path / "r.html", "cannot be read"),
        ((tmp_path,), tmp_path / "r.html", "cannot be read"),
        ((tmp_path / "bytes.json",), tmp_path / "r.html", "cannot be read"),
        ((file, tmp_path / "folder" / ".." / "a.json"), tmp_path / "r.html", "named twice"),
        ((file,), tmp_path, "is a directory"),
        ((file,), file / "r.html", "cannot be written"),
    ):
        result = llmc("report", *names, "-o", output)
        assert result.exit_code == UsageError.exit_code, result.stdout
        assert words in result.stderr
    assert sorted(it.name for it in tmp_path.iterdir()) == ["a.json", "bytes.json"]
