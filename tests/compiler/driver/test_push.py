"""Artifacts go to a small hub on this machine and come back as they were."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmc.compiler.artifact.artifact import new_artifact, open_artifact, write_manifest
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import ArtifactError, HubError, UsageError
from llmc.compiler.base.push_options import PushOptions
from llmc.compiler.driver.push import push

from ...hub_server import TOKEN, HubServer, hub_server, use_hub

FILES = {"engine.onnx": b"graph", "model.onnx.data": bytes(range(256)) * 400, "tokenizer.json": b"{}"}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        use_hub(server, monkeypatch, tmp_path / "cache", TOKEN)
        yield server


@pytest.fixture
def directory(manifest: Manifest, tmp_path: Path) -> Path:
    with new_artifact(tmp_path / "engine") as staging:
        for name, data in FILES.items():
            (staging / name).write_bytes(data)
        write_manifest(staging, manifest)
    return tmp_path / "engine"


def contents(hub: HubServer, repository: str, branch: str = "main") -> dict[str, bytes]:
    stored = hub.repositories[repository]
    return stored.commits[stored.branches[branch]]


class Bytes:
    """A display that remembers amounts of bytes."""

    def __init__(self) -> None:
        self.unit, self.amounts = "", [0]

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        self.unit = unit

    def advance(self, done: int) -> None:
        if self.unit == "bytes":
            self.amounts.append(done)


def test_a_new_repository_has_the_artifact_and_a_card(hub: HubServer, directory: Path) -> None:
    seen = Bytes()
    report = push(directory, "me/model", progress=seen)
    stored = contents(hub, "me/model")
    assert {name: stored[name] for name in FILES} == FILES
    assert stored["llmc.json"] == (directory / "llmc.json").read_bytes()
    assert stored["README.md"].decode() == report.card
    assert report.commit == hub.repositories["me/model"].branches["main"]
    assert report.address == f"{hub.address}/me/model/commit/{report.commit}"
    assert report.files == {name: (directory / name).stat().st_size for name in (*FILES, "llmc.json")}
    assert seen.amounts[-1] == sum(report.files.values())
    assert hub.messages == ["smollm2-135m, int4 for cpu"]
    assert len(hub.repositories["me/model"].commits) == 2, "more than one commit beside the first"
    assert not hub.repositories["me/model"].private
    assert set(hub.authorizations) == {None}, "the store saw a token"


def test_what_comes_back_is_the_artifact(hub: HubServer, directory: Path, tmp_path: Path) -> None:
    import huggingface_hub

    push(directory, "me/model")
    huggingface_hub.snapshot_download("me/model", local_dir=tmp_path / "back")
    artifact = open_artifact(tmp_path / "back")
    artifact.check_hashes()
    assert artifact.manifest == open_artifact(directory).manifest


def test_branch_message_and_private(hub: HubServer, directory: Path) -> None:
    push(directory, "me/model", PushOptions(private=True, revision="int4", message="as asked"))
    assert hub.messages == ["as asked"]
    assert set(FILES) <= set(contents(hub, "me/model", "int4"))
    assert not set(FILES) & set(contents(hub, "me/model"))
    assert hub.repositories["me/model"].private
    assert "--revision int4" in contents(hub, "me/model", "int4")["README.md"].decode()


def test_large_files_that_are_there_are_not_sent_again(hub: HubServer, directory: Path) -> None:
    push(directory, "me/model")
    sent = [path for method, path in hub.requests if method == "PUT"]
    assert len(sent) == 1
    hub.repositories["me/model"].commit({"notes.txt": b"mine"})
    push(directory, "me/model")
    assert [path for method, path in hub.requests if method == "PUT"] == sent
    assert contents(hub, "me/model")["notes.txt"] == b"mine"


def test_dry_run_sends_nothing(hub: HubServer, directory: Path) -> None:
    report = push(directory, "me/model", PushOptions(dry_run=True))
    assert report.card.startswith("---\n")
    assert (report.commit, report.address) == (None, None)
    assert not hub.requests


def refusal(directory: Path, repository: str = "me/model", options: PushOptions | None = None) -> str:
    with pytest.raises(HubError) as raised:
        push(directory, repository, options)
    assert "\n" not in str(raised.value)
    assert "hf_" not in str(raised.value)
    return str(raised.value)


def test_a_public_repository_is_not_taken_for_a_private_one(hub: HubServer, directory: Path) -> None:
    hub.add("me/model", {"x": b""})
    assert "is there and public, and --private asks for a private one" in refusal(
        directory, options=PushOptions(private=True)
    )
    assert contents(hub, "me/model") == {"x": b""}


def test_tokens(
    hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        push(directory, "me/model")
        monkeypatch.setenv("HF_TOKEN", "hf_wrongwrongwrong")
        assert "does not accept your token for me/model" in refusal(directory)
        monkeypatch.delenv("HF_TOKEN")
        assert "there is no token for the Hugging Face hub; log in with hf auth login" in refusal(directory)
    assert TOKEN not in caplog.text
    assert "hf_wrong" not in caplog.text


def test_hubs_that_do_not_answer(hub: HubServer, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.status = 500
    assert "me/model did not take the artifact" in refusal(directory)
    hub.status = 403
    assert "your token may not do this with me/model" in refusal(directory)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    assert "the Hugging Face hub cannot be reached for me/model" in refusal(directory)


def test_damaged_artifacts_are_not_sent(hub: HubServer, directory: Path) -> None:
    (directory / "engine.onnx").write_bytes(b"grapx")
    with pytest.raises(ArtifactError, match="is damaged"):
        push(directory, "me/model")
    assert not hub.requests


@pytest.mark.parametrize("name", ["model", "a/b/c", "me/model@v1", "", "./x"])
def test_names_of_no_repository(hub: HubServer, directory: Path, name: str) -> None:
    with pytest.raises(UsageError, match="names no repository of the hub; give owner/name"):
        push(directory, name)
    assert not hub.requests


def test_a_branch_without_a_name() -> None:
    with pytest.raises(UsageError, match="--revision names no branch"):
        PushOptions(revision=" ")
