from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from llmc.compiler.base.errors import CheckpointError, MissingDependencyError, UsageError
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.compiler.checkpoint import checkpoint as module
from llmc.compiler.checkpoint.checkpoint import open_checkpoint
from llmc.compiler.checkpoint.hub import Snapshot
from llmc.compiler.checkpoint.validation import check_shapes

from .conftest import GgufWriter, tiny_llama_tensors, tiny_metadata


def test_hugging_face_directory(tiny_hf: Path, tmp_path: Path) -> None:
    checkpoint = open_checkpoint(str(tiny_hf))
    assert (checkpoint.format, checkpoint.name, checkpoint.path) == ("safetensors", tiny_hf.name, tiny_hf)
    assert checkpoint.config.model_type == "llama"
    assert checkpoint.generation_config.eos_token_id == 2
    assert checkpoint.licence is None
    with checkpoint.content_hashes() as future:
        hashes = future.result()
    assert {"model.safetensors", "config.json", "tokenizer.json"} <= set(hashes)
    for name, value in hashes.items():
        assert value == hashlib.sha256((tiny_hf / name).read_bytes()).hexdigest()
    checkpoint.write_assets(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()
    with pytest.raises(dataclasses.FrozenInstanceError):
        checkpoint.name = "other"  # type: ignore[misc]


def test_a_directory_s_name_is_that_of_its_path(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also of the one that a user is in, and of one below home."""
    monkeypatch.chdir(tiny_hf)
    monkeypatch.setenv("HOME", str(tiny_hf.parent))
    for model in (".", f"../{tiny_hf.name}/", f"~/{tiny_hf.name}"):
        checkpoint = open_checkpoint(model)
        assert checkpoint.name == tiny_hf.name
        assert checkpoint.path.resolve() == tiny_hf.resolve()


def test_every_file_that_counts_is_hashed(tiny_hf: Path, tmp_path: Path) -> None:
    """Index and shards, configuration, tokenizer; not what is only there."""
    from safetensors.numpy import load_file, save_file

    source = Path(shutil.copytree(tiny_hf, tmp_path / "model", ignore=shutil.ignore_patterns("model.safetensors")))
    tensors = load_file(tiny_hf / "model.safetensors")
    weight_map = {}
    for number, names in enumerate((list(tensors)[::2], list(tensors)[1::2])):
        shard = f"part-{number}.safetensors"
        save_file({name: tensors[name] for name in names}, source / shard)
        weight_map |= dict.fromkeys(names, shard)
    (source / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    for name in ("tokenizer.model", "added_tokens.json", "training_args.bin", "README.md"):
        (source / name).write_text("x")
    with open_checkpoint(str(source)).content_hashes() as future:
        hashes = future.result()
    assert list(hashes) == sorted(hashes)
    weights = {"model.safetensors.index.json", "part-0.safetensors", "part-1.safetensors"}
    expected = {path.name for path in tiny_hf.iterdir()} - {"model.safetensors"} | weights
    assert set(hashes) == expected | {"tokenizer.model", "added_tokens.json"}


def test_weights_fit_the_model(tiny_hf: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    checkpoint = open_checkpoint(str(tiny_hf))
    model = AutoModelForCausalLM.from_pretrained(tiny_hf, dtype=torch.bfloat16)
    state = model.state_dict()
    expected = {name: tuple(value.shape) for name, value in state.items()}
    mapping = check_shapes(checkpoint.weights, expected, {})
    for name, tensor in mapping.items():
        np.testing.assert_array_equal(
            checkpoint.weights.read(tensor).astype(np.float32), state[name].float().numpy(), err_msg=name
        )


def test_gguf_file_and_a_directory_with_one(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    for model in (tiny_llama_gguf, tiny_llama_gguf.parent):
        checkpoint = open_checkpoint(str(model))
        assert (checkpoint.format, checkpoint.name, checkpoint.path) == ("gguf", "tiny", tiny_llama_gguf)
    assert checkpoint.generation_config.eos_token_id == [2]
    with checkpoint.content_hashes() as hashes:
        assert list(hashes.result()) == ["tiny.gguf"]
    checkpoint.write_assets(tmp_path / "out")
    assert (tmp_path / "out" / "tokenizer.json").is_file()


def test_of_safetensors_and_gguf_the_first_is_read_and_that_is_said(
    tiny_hf: Path, tiny_llama_gguf: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As transformers does, which reads a GGUF file only where it is named."""
    source = Path(shutil.copytree(tiny_hf, tmp_path / "both"))
    open_checkpoint(str(source))
    assert not caplog.records
    shutil.copy(tiny_llama_gguf, source)
    assert open_checkpoint(str(source)).format == "safetensors"
    assert "are read from model.safetensors, as transformers does, and not from tiny.gguf" in caplog.text


def test_a_gguf_file_beside_a_configuration_is_what_is_meant(
    tiny_hf: Path, tiny_llama_gguf: Path, tmp_path: Path
) -> None:
    """As many repositories on the hub are; the file has a configuration of its own."""
    for source in (tiny_hf / "config.json", tiny_llama_gguf):
        shutil.copy(source, tmp_path)
    checkpoint = open_checkpoint(str(tmp_path))
    assert (checkpoint.format, checkpoint.path.name) == ("gguf", "tiny.gguf")


def test_of_several_gguf_files_none_is_chosen(tiny_llama_gguf: Path, tmp_path: Path) -> None:
    for name in ("a.gguf", "b.gguf"):
        shutil.copy(tiny_llama_gguf, tmp_path / name)
    with pytest.raises(CheckpointError, match=r"holds 2 GGUF models: a\.gguf, b\.gguf; name one of these files"):
        open_checkpoint(str(tmp_path))


def test_a_licence_is_the_file_s_own_unless_it_is_known(
    write_gguf: GgufWriter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    metadata = tiny_metadata("llama") | {"general.license": "toy-1"}
    path = write_gguf(tmp_path / "x.gguf", "llama", metadata, tiny_llama_tensors())
    assert open_checkpoint(str(path)).licence == "toy-1"
    monkeypatch.setattr(module, "locate_builtin_model", lambda name, **_: path)
    assert open_checkpoint("smollm2-135m").licence == "Apache-2.0"


def test_a_directory_goes_before_a_built_in_model_of_its_name(
    tiny_hf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_hf, tmp_path / "smollm2-135m")
    monkeypatch.chdir(tmp_path)
    assert open_checkpoint("smollm2-135m").format == "safetensors"


@pytest.mark.parametrize("name", ["model.gguf", "model.safetensors"])
def test_a_file_that_is_missing_is_not_asked_of_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its name has the form of a repository's."""
    asked: list[str] = []
    monkeypatch.setattr(module, "fetch_snapshot", lambda repository, **_: asked.append(repository))
    with pytest.raises(CheckpointError, match="does not exist"):
        open_checkpoint(name)
    assert not asked


def test_built_in_name(smollm2_gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "locate_builtin_model", lambda name, **_: smollm2_gguf)
    checkpoint = open_checkpoint("smollm2-135m")
    assert (checkpoint.name, checkpoint.licence, checkpoint.config.vocab_size) == (
        "smollm2-135m",
        "Apache-2.0",
        49152,
    )


def test_built_in_name_that_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str, **_: object) -> Path:
        raise MissingDependencyError(name)

    monkeypatch.setattr(module, "locate_builtin_model", absent)
    with pytest.raises(MissingDependencyError):
        open_checkpoint("gemma3-270m")


def test_hub_id(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(repository: str, **options: object) -> Snapshot:
        asked.append((repository, options))
        return Snapshot(tiny_hf, "c0ffee")

    monkeypatch.setattr(module, "fetch_snapshot", fetch)
    assert open_checkpoint("org/tiny", allow_download=False).name == "org/tiny"
    rest = {"revision": None, "progress": NO_PROGRESS}
    assert asked == [("org/tiny", {"allow_download": False, "with_code": False, **rest})]
    trusted: list[bool] = []
    original = module.read_hf_config

    def read(path: Path, *, trust_remote_code: bool) -> object:
        trusted.append(trust_remote_code)
        return original(path)

    monkeypatch.setattr(module, "read_hf_config", read)
    for trust in (False, True):
        open_checkpoint("org/tiny", trust_remote_code=trust)
    assert trusted == [False, True]
    assert asked[1:] == [("org/tiny", {"allow_download": True, "with_code": trust, **rest}) for trust in trusted]


def test_revision_of_a_hub_id(tiny_hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def fetch(repository: str, *, revision: str | None, **options: object) -> Snapshot:
        asked.append((repository, revision))
        return Snapshot(tiny_hf, "c0ffee")

    monkeypatch.setattr(module, "fetch_snapshot", fetch)
    for model, revision in (("org/tiny@v1", None), ("org/tiny", "v1"), ("org/tiny@v1", "v1")):
        checkpoint = open_checkpoint(model, revision=revision)
        assert (checkpoint.name, checkpoint.revision, checkpoint.commit) == ("org/tiny", "v1", "c0ffee")
    assert asked == [("org/tiny", "v1")] * 3
    assert open_checkpoint("org/tiny").revision is None
    with pytest.raises(UsageError, match=r"org/tiny@v1 names another revision than --revision v2; give one of them"):
        open_checkpoint("org/tiny@v1", revision="v2")


@pytest.mark.parametrize("kind", ["directory", "built-in"])
def test_revision_of_what_is_here(tiny_hf: Path, kind: str) -> None:
    model = str(tiny_hf) if kind == "directory" else "smollm2-135m"
    assert open_checkpoint(str(tiny_hf)).commit is None
    with pytest.raises(
        UsageError, match=r"--revision v1 is for models of the Hugging Face hub, and .* is here already"
    ):
        open_checkpoint(model, revision="v1")


@pytest.mark.parametrize("model", ["./nothing", "/nothing/here", "nothing.gguf", "a/b/c"])
def test_path_that_does_not_exist(model: str) -> None:
    with pytest.raises(CheckpointError, match=r"does not exist; name a directory, a .gguf file, a built-in model"):
        open_checkpoint(model)


def test_file_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"is no .gguf file"):
        open_checkpoint(str(tmp_path / "model.onnx"))


def test_directory_without_config_or_weights(tiny_hf: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"has no config.json"):
        open_checkpoint(str(tmp_path))
    shutil.copy(tiny_hf / "config.json", tmp_path)
    with pytest.raises(CheckpointError, match="has no weights"):
        open_checkpoint(str(tmp_path))


def test_importing_loads_neither_torch_nor_transformers() -> None:
    code = (
        "import sys, llmc.compiler.checkpoint.checkpoint, llmc.compiler.checkpoint.validation;"
        "print(*{'torch', 'transformers', 'gguf', 'huggingface_hub', 'tokenizers'} & set(sys.modules))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == ""


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 134\n"


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json", "config.json", "tokenizer.model"])
def test_pointers_of_git_lfs_are_named_before_anything_is_read(tiny_hf: Path, tmp_path: Path, name: str) -> None:
    source = Path(shutil.copytree(tiny_hf, tmp_path / "in"))
    (source / name).write_text(POINTER)
    with pytest.raises(CheckpointError, match=rf"in/{name}: a git-lfs pointer"):
        open_checkpoint(str(source))


def test_a_gguf_file_that_is_a_pointer_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.gguf").write_text(POINTER)
    for model in (tmp_path, tmp_path / "a.gguf"):
        with pytest.raises(CheckpointError, match=r"a\.gguf: a git-lfs pointer"):
            open_checkpoint(str(model))


def test_every_file_of_a_tokenizer_is_among_the_files(tiny_hf: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(tiny_hf, tmp_path / "in"))
    (source / "additional_chat_templates").mkdir()
    for name in ("tiktoken.model", "merges.txt", "additional_chat_templates/tool_use.jinja", "chat_template.jinja"):
        (source / name).write_text("x")
    files = open_checkpoint(str(source)).files()
    assert len(files) == len(set(files))
    assert {"tiktoken.model", "merges.txt", "tool_use.jinja", "chat_template.jinja"} <= {path.name for path in files}


def test_the_file_that_the_configuration_names_is_read(tiny_hf: Path, tmp_path: Path) -> None:
    """As by transformers, also beside a file of the usual name."""
    directory = shutil.copytree(tiny_hf, tmp_path / "model")
    config = json.loads((directory / "config.json").read_text())
    shutil.copy(directory / "model.safetensors", directory / "mine.safetensors")
    (directory / "config.json").write_text(json.dumps(config | {"transformers_weights": "mine.safetensors"}))
    assert [path.name for path in open_checkpoint(str(directory)).weights.files] == ["mine.safetensors"]
    for name in ("other.safetensors", "model.bin", 3):
        (directory / "config.json").write_text(json.dumps(config | {"transformers_weights": name}))
        with pytest.raises(CheckpointError, match=rf"weights are in {name} \(transformers_weights\)"):
            open_checkpoint(str(directory))


@pytest.mark.parametrize("model", ["owner/Qwen2.5-GGUF:Q4_K_M", "name:IQ4_XS", "owner/name:latest"])
def test_a_quantization_behind_a_colon_is_told_how_it_is_had(model: str) -> None:
    repository, _, quantization = model.partition(":")
    said = (
        rf"asks for the quantization {quantization} of {repository}, .* --include '\*{quantization}\*'\), and name it"
    )
    with pytest.raises(CheckpointError, match=said):
        open_checkpoint(model, allow_download=False)


def test_a_pipe_is_not_waited_for(tiny_hf: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "model.gguf")
    with pytest.raises(CheckpointError, match=r"model\.gguf is a pipe, a socket or a device"):
        open_checkpoint(str(tmp_path / "model.gguf"))
    source = Path(shutil.copytree(tiny_hf, tmp_path / "model"))
    os.mkfifo(source / "adapter_config.json")
    with pytest.raises(CheckpointError, match=r"adapter_config\.json is a pipe, a socket or a device"):
        open_checkpoint(str(source))
