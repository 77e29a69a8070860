"""Workflows in docs/examples: as GitHub takes them, pinned, and their llmc lines are real command lines."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.main import get_command

from llmc.compiler.cli.app import app
from llmc.runtimes.bench.gate.condition import parse_condition
from llmc.runtimes.bench.gate.figures import METRIC_NAMES

WORKFLOWS = sorted((Path(__file__).parent.parent / "docs" / "examples").glob("*.yml"))
JOB_KEYS = """name needs if permissions runs-on environment concurrency outputs env defaults steps timeout-minutes
strategy continue-on-error container services uses with secrets"""
KEYS = {
    "workflow": {"name", "run-name", "on", "permissions", "env", "defaults", "concurrency", "jobs"},
    "job": set(JOB_KEYS.split()),
    "step": {
        "id",
        "if",
        "name",
        "uses",
        "run",
        "working-directory",
        "shell",
        "with",
        "env",
        "continue-on-error",
        "timeout-minutes",
    },
}
"""What docs.github.com, "Workflow syntax for GitHub Actions", has."""
CONTEXTS = re.compile(r"!?(cancelled|always|success|failure)\(\)|(github|env|matrix|steps|runner|needs)\.[\w.-]+")
PINNED = re.compile(r"[\w.-]+/[\w./-]+@[0-9a-f]{40}")


class Loader(yaml.SafeLoader):
    """YAML 1.2's booleans: ``on`` is a word, as it is for GitHub; a key that stands twice is an error."""

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        assert len(keys) == len(set(keys)), f"a key stands twice among {keys}"
        return super().construct_mapping(node, deep)


Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in rules if tag != "tag:yaml.org,2002:bool" or first in "tTfF"]
    for first, rules in yaml.SafeLoader.yaml_implicit_resolvers.items()
}


def complaints(text: str) -> Iterator[str]:
    """What is wrong with a workflow."""
    workflow = yaml.load(text, Loader)
    yield from _unknown("workflow", workflow)
    yield from (f"{key} is missing" for key in ("name", "on", "permissions", "jobs") if key not in workflow)
    for name, job in workflow.get("jobs", {}).items():
        yield from _unknown("job", job)
        yield from (f"{name}: {key} is missing" for key in ("runs-on", "timeout-minutes", "steps") if key not in job)
        for step in job.get("steps", ()):
            yield from _unknown("step", step)
            yield from _wrong_step(step)
    for expression in re.findall(r"\$\{\{(.*?)\}\}", text):
        if not CONTEXTS.fullmatch(expression.strip()):
            yield f"expression {expression.strip()}"
    for line in re.findall(r"uses: (.*)", text):
        if not re.fullmatch(PINNED.pattern + r" # v\d+(\.\d+)+", line.strip()):
            yield f"{line} is not pinned to a commit with its version behind it"


def _unknown(kind: str, record: dict[str, Any]) -> Iterator[str]:
    yield from (f"{kind} has {key}" for key in record if key not in KEYS[kind])


def _wrong_step(step: dict[str, Any]) -> Iterator[str]:
    if ("run" in step) == ("uses" in step):
        yield f"step {step.get('name')} needs one of run and uses"
    for words in commands(step.get("run", "")):
        try:
            command = get_command(app).commands[words[0]]  # type: ignore[attr-defined]
            context = command.make_context(words[0], words[1:])
        except Exception as error:  # noqa: BLE001  (typer's errors have no public class)
            yield f"llmc {' '.join(words)}: {error or type(error).__name__}"
            continue
        for text in context.params.get("fail_if") or ():
            parse_condition(text, METRIC_NAMES)


def commands(script: str) -> Iterator[list[str]]:
    """The arguments of every call of llmc."""
    for line in script.splitlines():
        words = shlex.split(line, comments=True)
        if words and Path(words[0]).name == "llmc":
            yield words[1:]


@pytest.mark.parametrize("path", WORKFLOWS, ids=[path.name for path in WORKFLOWS])
def test_workflow(path: Path) -> None:
    assert list(complaints(path.read_text(encoding="utf-8"))) == []


def test_there_are_some() -> None:
    (path,) = WORKFLOWS
    (job,) = yaml.load(path.read_text(), Loader)["jobs"].values()
    lines = [words[0] for step in job["steps"] for words in commands(step.get("run", ""))]
    assert lines == ["compile", "compile", "verify", "bench"]


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("runs-on:", "runs-in:", "job has runs-in"),
        ("    steps:", "    timeout: 3\n    steps:", "job has timeout"),
        ("permissions:", "permission:", "permissions is missing"),
        ("timeout-minutes: 90", "env: {}", "gate: timeout-minutes is missing"),
        ("# v4.2.2", "", "is not pinned"),
        ("@11bd71901bbe5b1630ceea73d27597364c9af683", "@v4", "is not pinned"),
        ("--max-kl 0.1", "--max-lk 0.1", "No such option"),
        ("--max-kl 0.1", "--max-kl much", "much"),
        ("llmc verify", "llmc verfy", "llmc verfy new"),
        ("github.base_ref", "gihub.base_ref", "expression gihub.base_ref"),
        (
            "        uses: actions/upload",
            "        run: ls\n        uses: actions/upload",
            "needs one of run and uses",
        ),
    ],
)
def test_faults_are_noticed(old: str, new: str, complaint: str) -> None:
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    assert old in text
    assert any(complaint in found for found in complaints(text.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("decode_tps", "decode_tsp", "decode_tsp is no metric"),
        ("name: gate", "name: gate\nname: gate", "stands twice"),
    ],
)
def test_faults_that_are_errors(old: str, new: str, complaint: str) -> None:
    text = WORKFLOWS[0].read_text(encoding="utf-8")
    with pytest.raises(Exception, match=complaint):
        list(complaints(text.replace(old, new)))
