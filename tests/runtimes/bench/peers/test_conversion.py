"""Checkpoints converted for peers: once for the same bytes, whole or not at all, off the network."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from llmc.compiler.base.errors import CheckpointError, EngineError, MachineError, UsageError
from llmc.runtimes.bench.peers.conversion import SourceModel, converted
from llmc.runtimes.bench.peers.environments import FOLDER
from llmc.runtimes.bench.peers.installation import Installation

SCRIPT = """
import json, os, pathlib, sys
source, output, kind, parts = sys.argv[1:]
with open({log!r}, "a") as log:
    log.write(json.dumps([*sys.argv[1:], os.environ["HF_HUB_OFFLINE"], os.getcwd()]) + "\\n")
if kind == "int8":
    sys.exit("int8 is not for this model")
pathlib.Path(output).mkdir()
pathlib.Path(output, "numbers").write_text(kind)
"""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A folder that looks like one."""
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(1000))
    return folder


@pytest.fixture
def peer(make_environment: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Installation:
    """A peer whose converter notes how it is called."""
    environment = make_environment(converter="convert.py")
    environment.script.write_text(SCRIPT.format(log=str(tmp_path / "log")))
    directory = tmp_path / "environment"
    (directory / "bin").mkdir(parents=True)
    (directory / "bin" / "python").symlink_to(sys.executable)
    return Installation(environment, directory, {"fakepeer": "1.0"}, 1)


def calls(tmp_path: Path) -> list[list[str]]:
    log = tmp_path / "log"
    return [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []


def test_a_checkpoint_is_converted_once_off_the_network(peer, checkpoint, tmp_path):
    root = tmp_path / "root"
    source = SourceModel.find(checkpoint)
    model = converted(peer, source, "int4", root)
    assert (model / "numbers").read_text() == "int4"
    assert converted(peer, SourceModel.find(checkpoint), "int4", root) == model
    ((path, output, kind, parts, offline, folder),) = calls(tmp_path)
    assert (path, kind, offline) == (str(checkpoint), "int4", "1")
    assert parts == str(peer.directory / "source")
    assert Path(output) != model, "it is made under another name"
    assert Path(folder) != Path.cwd(), "what it leaves in the current folder is thrown away"
    record = json.loads((model.parent / "source.json").read_text())
    assert record == {"source": "checkpoint", "digest": source.digest(), "versions": {"fakepeer": "1.0"}}


def test_other_bytes_versions_or_converters_are_other_models(peer, checkpoint, tmp_path, make_environment):
    root = tmp_path / "root"
    models = {converted(peer, SourceModel.find(checkpoint), "int4", root)}
    models.add(converted(peer, SourceModel.find(checkpoint), "fp32", root))
    (checkpoint / "model.safetensors").write_bytes(bytes(999) + b"1")
    models.add(converted(peer, SourceModel.find(checkpoint), "int4", root))
    other = make_environment("fakepeer==2.0\n", converter="convert.py")
    models.add(converted(replace(peer, environment=other), SourceModel.find(checkpoint), "int4", root))
    script = peer.environment.script
    script.write_text(script.read_text() + "# better\n")
    models.add(converted(replace(peer, environment=other), SourceModel.find(checkpoint), "int4", root))
    assert len(models) == len(calls(tmp_path)) == 5


def test_a_file_under_another_name_is_another_checkpoint(checkpoint):
    first = SourceModel.find(checkpoint).digest()
    (checkpoint / "config.json").rename(checkpoint / "other.json")
    (checkpoint / "config.json").write_text("{}")
    (checkpoint / "other.json").unlink()
    assert SourceModel.find(checkpoint).digest() == first
    (checkpoint / "model.safetensors").rename(checkpoint / "model2.safetensors")
    assert SourceModel.find(checkpoint).digest() != first


def test_what_the_converter_says_is_handed_on_and_nothing_stays(peer, checkpoint, tmp_path):
    root = tmp_path / "root"
    with pytest.raises(EngineError, match=r"fake: its converter made no int8 model .*status 1\)\nint8 is not for"):
        converted(peer, SourceModel.find(checkpoint), "int8", root)
    assert not list((root / "models").iterdir())


def test_a_converter_that_writes_nothing_has_failed(peer, checkpoint, tmp_path):
    peer.environment.script.write_text("print('done')")
    with pytest.raises(EngineError, match=r"status 0\)\ndone"):
        converted(peer, SourceModel.find(checkpoint), "int4", tmp_path / "root")


def test_what_is_half_converted_is_never_taken(peer, checkpoint, tmp_path):
    root = tmp_path / "root"
    model = converted(peer, SourceModel.find(checkpoint), "int4", root)
    (model.parent / "source.json").unlink()
    converted(peer, SourceModel.find(checkpoint), "int4", root)
    assert len(calls(tmp_path)) == 2


def test_a_peer_without_a_converter_opens_the_checkpoint(peer, checkpoint, tmp_path, make_environment):
    bare = replace(peer, environment=make_environment(converter=None))
    told: list[str] = []
    progress = SimpleNamespace(start=lambda stage, *of: told.append(stage), advance=told.append)
    assert converted(bare, SourceModel.find(checkpoint), "float32", tmp_path / "root", progress) == checkpoint
    assert told == [], "and what is not converted is not read"


def test_a_gguf_file_is_for_llama_cpp(peer, tmp_path, make_environment):
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    with pytest.raises(UsageError, match=r"fake reads a folder with config\.json and safetensors, and m\.gguf is"):
        converted(peer, SourceModel.find(file), "int4", tmp_path / "root")
    built = replace(peer, environment=make_environment(converter="convert.py", source="fakepeer"))
    assert converted(built, SourceModel.find(file), "float", tmp_path / "root") == file
    assert not calls(tmp_path)


def test_what_is_no_checkpoint_is_named(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    for path in (tmp_path, tmp_path / "none", tmp_path / "config.json"):
        with pytest.raises(CheckpointError, match="neither a GGUF file nor a folder with"):
            SourceModel.find(path)


def test_a_folder_that_cannot_be_written_is_named(peer, checkpoint, tmp_path):
    (tmp_path / "root").write_text("a file")
    with pytest.raises(MachineError, match="models cannot be written"):
        converted(peer, SourceModel.find(checkpoint), "int4", tmp_path / "root")


def test_reading_tells_how_far_it_is(checkpoint):
    told: list[Any] = []

    class Progress:
        def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
            told.append((stage, total, unit))

        def advance(self, done: int) -> None:
            told.append(done)

    source = SourceModel.find(checkpoint)
    digest = source.digest(Progress())
    assert told == [("Reading checkpoint", 1002, "bytes"), 2, 1002]
    assert source.digest(Progress()) == digest
    assert len(told) == 3, "its bytes are read once"


def test_the_scripts_are_where_they_are_looked_for():
    assert {path.name for path in (FOLDER / "converters").glob("to_*.py")} == {
        "to_gguf.py",
        "to_genai.py",
        "to_openvino.py",
        "to_ctranslate2.py",
    }
