"""Peers by name: what the option says, and which subjects come of it."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.base.errors import EngineError, MissingDependencyError, UsageError
from llmc.runtimes.bench.peers import conversion, named
from llmc.runtimes.bench.peers.environments import ENVIRONMENTS
from llmc.runtimes.bench.peers.installation import RECORD, environment_directory
from llmc.runtimes.bench.peers.named import NamedChoice, named_peers
from llmc.runtimes.bench.peers.options import NamedPeers
from llmc.runtimes.bench.workers import peers


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Every peer's environment, as it is found."""
    for environment in ENVIRONMENTS.values():
        directory = environment_directory(environment, tmp_path / "root")
        (directory / "bin").mkdir(parents=True)
        (directory / "bin" / "python").symlink_to(sys.executable)
        (directory / RECORD).write_text(json.dumps({"versions": {"vllm": "0.26.0"}, "disk_bytes": 5}))
    return tmp_path / "root"


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(bytes(10))
    return folder


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Workers that prepare whatever they are asked to; (command, source, cache) of each, and what each answers."""
    seen: list[tuple[tuple[str, ...], str, str]] = []
    answers: dict[str, dict[str, Any]] = {}

    class Worker:
        def __init__(self, label: str, command: Any) -> None:
            self.label, self.command = label, tuple(command)

        def __enter__(self) -> Worker:
            return self

        def __exit__(self, *error: object) -> None:
            return None

        def request(self, command: str, **fields: Any) -> dict[str, Any]:
            seen.append((self.command, fields["source"], fields["cache"]))
            return {"path": fields["source"], "details": answers.get(self.label, {})}

    monkeypatch.setattr(peers, "WorkerProcess", Worker)

    def convert(installation: Any, script: Path, source: Any, kind: str, output: Path) -> None:
        output.mkdir()
        (output / "float.gguf").write_text(kind)

    monkeypatch.setattr(conversion, "_run_converter", convert)
    return seen, answers


def subjects(texts: list[str], root: Path, checkpoint: Path | None) -> Any:
    choices = [choice for text in texts if (choice := NamedChoice.parse(text))]
    assert len(choices) == len(texts)
    options = NamedPeers(None if checkpoint is None else str(checkpoint), directory=str(root))
    return [subject for peer in named_peers(choices, options, Path) for subject in peer.subjects]


def test_each_peer_opens_what_its_converter_made(asked, root, checkpoint):
    _, answers = asked
    answers["openvino-genai"] = {"ftype": "int8", "variants": ["stateful"]}
    answers["onnxruntime-genai"] = {"ftype": "int4", "variants": ["cpu"]}
    found = subjects(["openvino-genai@int8", "onnxruntime-genai", "ctranslate2"], root, checkpoint)
    labels = [subject.label for subject in found]
    assert labels == ["openvino-genai int8, stateful", "onnxruntime-genai int4, cpu", "ctranslate2 int8"]
    openvino, genai, ctranslate2 = found
    assert openvino.path.parent.name.startswith("openvino-genai-int8-")
    assert genai.path.parent.name.startswith("onnxruntime-genai-int4-")
    assert genai.command[-1] == "cpu"
    name = environment_directory(ENVIRONMENTS["ctranslate2"], root).name
    assert ctranslate2.command[0] == str(root / "environments" / name / "bin" / "python")


def test_llama_cpp_makes_all_types_of_one_file_of_floats(asked, root, checkpoint):
    seen, answers = asked
    answers["llama.cpp"] = {"ftype": "Q4_0"}
    found = subjects(["llama.cpp@Q4_0", "llama.cpp/flash attention@Q4_0"], root, checkpoint)
    assert [subject.label for subject in found] == [
        "llama.cpp Q4_0, flash attention",
        "llama.cpp Q4_0, no flash attention",
        "llama.cpp Q4_0, flash attention",
    ]
    (command, source, cache), (_, again, _) = seen
    assert command[-2:] == ("auto", "Q4_0")
    assert source == again
    assert Path(source).name == "float.gguf"
    assert Path(source).parent.parent.name.startswith("llama.cpp-float-")
    assert Path(cache) == Path(source).parent, "files of other types are kept beside it"


def test_a_gguf_file_is_run_as_it_is_or_in_another_type(asked, root, tmp_path):
    seen, answers = asked
    answers["llama.cpp"] = {"ftype": "Q5_0"}
    file = tmp_path / "m.gguf"
    file.write_bytes(b"GGUF")
    as_it_is, _ = subjects(["llama.cpp"], root, file)
    assert (seen[-1][0][-1], seen[-1][1]) == (peers.PEERS["llamacpp-python"].module, str(file))
    assert as_it_is.path == file
    subjects(["llama.cpp@Q5_0"], root, file)
    assert seen[-1][0][-2:] == ("auto", "Q5_0")
    assert Path(seen[-1][2]) == root / "models"


def test_peers_that_open_the_checkpoint_are_told_the_type(asked, root, checkpoint):
    seen, answers = asked
    answers["transformers"] = {"ftype": "bf16"}
    found = subjects(["transformers@bfloat16", "transformers/generate", "vllm"], root, checkpoint)
    assert [subject.command[-2:] for subject in found[:3]] == [
        ("eager", "bfloat16"),
        ("compile", "bfloat16"),
        ("generate", "float32"),
    ]
    assert found[3].command[-1] == "auto"
    assert {source for _, source, _ in seen} == {str(checkpoint)}
    assert seen[0][0][-2:] == ("eager", "bfloat16")
    assert found[3].label == "vllm auto"


def test_a_model_in_other_numbers_than_asked_for_is_no_comparison(asked, root, checkpoint):
    _, answers = asked
    answers["openvino-genai"] = {"ftype": "fp32"}
    with pytest.raises(EngineError, match=r"openvino-genai: asked for int4, its converter made a model in fp32"):
        subjects(["openvino-genai"], root, checkpoint)


def test_peers_that_are_missing_are_all_named_before_anything_is_read(asked, root, tmp_path):
    for name in ("ctranslate2", "vllm"):
        (environment_directory(ENVIRONMENTS[name], root) / RECORD).unlink()
    with pytest.raises(MissingDependencyError, match=f"--install-peers ctranslate2,vllm --peers-dir {root}"):
        subjects(["ctranslate2", "openvino-genai", "vllm"], root, tmp_path / "no checkpoint")


def test_a_checkpoint_has_to_be_named(asked, root):
    with pytest.raises(UsageError, match="--checkpoint MODEL"):
        subjects(["ctranslate2"], root, None)
    assert named_peers([], NamedPeers(), Path) == []


@pytest.mark.parametrize(
    ("text", "name", "variant", "kind"),
    [
        ("llama.cpp", "llama.cpp", None, None),
        ("llama.cpp/flash attention@Q4_0", "llama.cpp", "flash attention", "Q4_0"),
        ("openvino-genai@int8", "openvino-genai", None, "int8"),
        ("transformers/compile", "transformers", "compile", None),
    ],
)
def test_what_the_option_says(text, name, variant, kind):
    assert NamedChoice.parse(text) == NamedChoice(ENVIRONMENTS[name], variant, kind)


@pytest.mark.parametrize("text", ["transformers=py:m", "transformers/compile=py:m@x", "nobody", "genai"])
def test_other_forms_are_left_to_others(text):
    assert NamedChoice.parse(text) is None


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ctranslate2@int4", "ctranslate2 has no type 'int4'; it has: int8,"),
        ("ctranslate2@", "has no type ''"),
        ("llama.cpp@Q4", "llama.cpp has no type 'Q4'"),
        ("transformers/fast", "transformers has no variant 'fast'; it has: eager"),
        ("openvino-genai/", "has no variant ''"),
    ],
)
def test_what_a_peer_has_not_is_refused(text, message):
    with pytest.raises(UsageError, match=message):
        NamedChoice.parse(text)


def test_the_state_of_each_is_told(root, monkeypatch):
    installed: list[Any] = []
    monkeypatch.setattr("llmc.runtimes.bench.peers.installation.install_peers", lambda *args: installed.append(args))
    (environment_directory(ENVIRONMENTS["ctranslate2"], root) / RECORD).unlink()
    states = {state.environment.name: state for state in NamedPeers(directory=str(root)).installations()}
    assert not installed
    assert list(states) == list(ENVIRONMENTS)
    missing, present = states["ctranslate2"].to_json(), states["vllm"].to_json()
    assert (missing["installed"], missing["python"], missing["disk_bytes"]) == (False, None, None)
    assert (present["installed"], present["versions"], present["disk_bytes"]) == (True, {"vllm": "0.26.0"}, 5)
    NamedPeers(install="vllm", directory=str(root)).installations()
    assert [each.name for each in installed[0][0]] == ["vllm"]
    assert named.FLOAT_GGUF == "float.gguf"
