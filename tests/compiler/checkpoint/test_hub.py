from __future__ import annotations

import logging
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.hub import HubName, fetch_snapshot, is_hub_id

from ...hub_server import TOKEN, HubServer, hub_server, use_hub

WEIGHTS = random.Random(0).randbytes(300_000)
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": WEIGHTS}
NAMES = (
    "model-00001-of-00002.safetensors",
    "model.safetensors.index.json",
    "config.json",
    "tokenizer.model",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "merges.txt",
    "qwen.tiktoken",
    "tokenizer.something",
    "README.md",
    "pytorch_model.bin",
    "consolidated.safetensors",
    "onnx/model.onnx",
    "original/tokenizer.model",
    "modeling_x.py",
)
WANTED = {*NAMES[:10]}


@pytest.mark.parametrize("text", ["gpt2", "org/model", "Org-1/model.v2_x"])
def test_ids(text: str) -> None:
    assert is_hub_id(text)


@pytest.mark.parametrize(
    "text",
    [
        "./model",
        "/abs/model",
        "a/b/c",
        "../x",
        "~/x",
        "",
        "a b",
        "org/",
        ".",
        "..",
        "-x",
        ".hidden/model",
        "org/.hidden",
    ],
)
def test_paths_are_no_ids(text: str) -> None:
    assert not is_hub_id(text)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/model@v1", HubName("org/model", "v1")),
        ("gpt2@refs/pr/1", HubName("gpt2", "refs/pr/1")),
        ("org/model", HubName("org/model")),
        ("org/model@", None),
        ("org/model@../x", None),
        ("org/model@a b", None),
        ("./model@v1", None),
    ],
)
def test_names_with_a_revision(text: str, name: HubName | None) -> None:
    assert HubName.parse(text) == name
    if "@" in text:
        assert not is_hub_id(text)


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[HubServer]:
    with hub_server() as server:
        use_hub(server, monkeypatch, tmp_path)
        yield server


class Seen:
    """A display that remembers."""

    def __init__(self) -> None:
        self.stages: list[tuple[str, int | None, str]] = []
        self.amounts: list[int] = []

    def start(self, stage: str, total: int | None = None, unit: str = "") -> None:
        self.stages.append((stage, total, unit))

    def advance(self, done: int) -> None:
        self.amounts.append(done)


def files_of(directory: Path) -> set[str]:
    return {path.relative_to(directory).as_posix() for path in directory.rglob("*") if path.is_file()}


def stored(hub: HubServer) -> list[str]:
    """Requests to the large file store."""
    return [path for _, path in hub.requests if path.startswith("/store/")]


def test_only_what_is_needed_is_fetched(hub: HubServer) -> None:
    hub.add("org/model", dict.fromkeys(NAMES, b"x") | {"model-00001-of-00002.safetensors": WEIGHTS})
    assert files_of(fetch_snapshot("org/model").directory) == WANTED
    assert files_of(fetch_snapshot("org/model", with_code=True).directory) == {*WANTED, "modeling_x.py"}


def test_bytes_are_those_of_the_hub_and_progress_says_so(hub: HubServer) -> None:
    repository, seen = hub.add("org/model", FILES), Seen()
    snapshot = fetch_snapshot("org/model", progress=seen)
    assert snapshot.commit == repository.branches["main"]
    assert {name: (snapshot.directory / name).read_bytes() for name in FILES} == FILES
    assert seen.stages == [("Downloading org/model", len(WEIGHTS), "bytes")]
    assert seen.amounts == sorted(seen.amounts)
    assert seen.amounts[-1] == len(WEIGHTS)
    before = len(stored(hub))
    assert fetch_snapshot("org/model") == snapshot
    assert len(stored(hub)) == before == 1


def test_revisions(hub: HubServer) -> None:
    repository = hub.add("org/model", FILES)
    first = repository.branches["main"]
    repository.tags["v1"] = first
    repository.commit({**FILES, "config.json": b'{"model_type": "gpt2"}'})
    second = repository.branches["main"]
    assert fetch_snapshot("org/model").commit == second
    for revision in ("v1", first):
        snapshot = fetch_snapshot("org/model", revision=revision)
        assert snapshot.commit == first
        assert (snapshot.directory / "config.json").read_bytes() == FILES["config.json"]
    assert fetch_snapshot("org/model", revision="v1", allow_download=False).commit == first
    with pytest.raises(CheckpointError, match=r"no revision v9 .*the branches main and the tags v1\.$"):
        fetch_snapshot("org/model", revision="v9")
    with pytest.raises(CheckpointError, match=r"at revision v2 is no path here and not in the"):
        fetch_snapshot("org/model", revision="v2", allow_download=False)


def test_a_store_elsewhere_sees_no_token(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    hub.add("org/model", FILES, private=True)
    fetch_snapshot("org/model")
    assert hub.authorizations
    assert set(hub.authorizations) == {None}


def fetch_in_process(hub: HubServer, cache: Path) -> subprocess.Popen[str]:
    code = (
        "from huggingface_hub import constants; constants.DOWNLOAD_CHUNK_SIZE = 4096\n"
        "from llmc.compiler.checkpoint.hub import fetch_snapshot; fetch_snapshot('org/model')"
    )
    settings = {"HF_ENDPOINT": hub.address, "HF_HUB_CACHE": str(cache), "HF_HUB_DISABLE_XET": "1"}
    return subprocess.Popen(
        [sys.executable, "-c", code], env={**os.environ, **settings}, stderr=subprocess.DEVNULL, text=True
    )


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_a_killed_download_goes_on_where_it_was(hub: HubServer, tmp_path: Path, signal_number: int) -> None:
    hub.add("org/model", FILES)
    hub.pause = 0.2
    process = fetch_in_process(hub, tmp_path)
    deadline = time.monotonic() + 60
    while not (partial := list(tmp_path.rglob("*.llmc.incomplete"))) or partial[0].stat().st_size < 1 << 15:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    process.send_signal(signal_number)
    process.wait(timeout=20)
    kept = partial[0].stat().st_size
    assert 1 << 15 <= kept < len(WEIGHTS)
    hub.pause = 0
    snapshot = fetch_snapshot("org/model")
    assert hub.ranges[-1] == f"bytes={kept}-"
    assert (snapshot.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert not list(tmp_path.rglob("*.incomplete"))


def test_a_store_that_knows_no_ranges_sends_all_again(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/model", FILES)
    hub.ignores_ranges, seen = True, Seen()
    blobs = tmp_path / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    digest = next(key for key, data in hub.objects.items() if data == WEIGHTS)
    (blobs / f"{digest}.llmc.incomplete").write_bytes(b"y" * 5000)
    snapshot = fetch_snapshot("org/model", progress=seen)
    assert (snapshot.directory / "model.safetensors").read_bytes() == WEIGHTS
    assert seen.amounts[-1] == len(WEIGHTS)


@pytest.mark.parametrize("name", [*FILES])
def test_a_damaged_file_is_refused_and_fetched_anew(hub: HubServer, tmp_path: Path, name: str) -> None:
    hub.add("org/model", FILES)
    hub.spoiled = {name}
    with pytest.raises(CheckpointError, match=rf"{name} of org/model came damaged: .* it was removed"):
        fetch_snapshot("org/model")
    hub.spoiled = set()
    snapshot = fetch_snapshot("org/model")
    assert (snapshot.directory / name).read_bytes() == FILES[name]


def test_what_was_kept_of_another_content_is_not_taken(hub: HubServer, tmp_path: Path) -> None:
    hub.add("org/model", FILES)
    blobs = tmp_path / "models--org--model" / "blobs"
    blobs.mkdir(parents=True)
    digest = next(key for key, data in hub.objects.items() if data == WEIGHTS)
    (blobs / f"{digest}.llmc.incomplete").write_bytes(b"y" * 5000)
    with pytest.raises(CheckpointError, match="came damaged"):
        fetch_snapshot("org/model")
    (blobs / f"{digest}.llmc.incomplete").write_bytes(b"y" * (len(WEIGHTS) + 1))
    assert (fetch_snapshot("org/model").directory / "model.safetensors").read_bytes() == WEIGHTS


@pytest.mark.parametrize(
    ("facts", "token", "message"),
    [
        ({"gated": True}, None, "org/model is gated .* accept its terms there and log in with hf auth login"),
        ({"private": True}, None, "neither a path here nor a repository .* that you may read"),
        ({"private": True}, "hf_wrong", "does not accept your token for org/model; log in with hf auth login again"),
    ],
)
def test_repositories_that_are_closed(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, facts: dict[str, bool], token: str | None, message: str
) -> None:
    hub.add("org/model", FILES, **facts)
    if token is not None:
        monkeypatch.setenv("HF_TOKEN", token)
    assert message_of("org/model", message)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert fetch_snapshot("org/model").commit


def message_of(repository: str, pattern: str) -> str:
    """The sentence that a fetch fails with: one line, without a token, and as ``pattern`` says."""
    with pytest.raises(CheckpointError, match=pattern) as raised:
        fetch_snapshot(repository)
    text = str(raised.value)
    assert "\n" not in text
    assert "hf_" not in text
    assert "Signature" not in text
    return text


def test_repositories_that_are_none(hub: HubServer) -> None:
    message_of("org/nothing", "neither a path here nor a repository on the Hugging Face hub")
    message_of("a--b/c..d", "neither a path here nor a repository on the Hugging Face hub")
    hub.add("org/gguf", {"a.Q4_K_M.gguf": b"", "config.json": b"{}"})
    message_of("org/gguf", r"no safetensors weights but GGUF files; .*hf download org/gguf a.Q4_K_M.gguf")
    hub.add("org/pickle", {"pytorch_model.bin": b"", "config.json": b"{}"})
    message_of("org/pickle", r"pytorch_model.bin, a pickle that could run code")
    hub.add("org/data", {"train.csv": b""})
    message_of("org/data", "has no safetensors weights; name a repository of a language model")


@pytest.mark.parametrize(
    ("status", "message"),
    [
        (401, "neither a path here nor a repository"),
        (403, "your token may not do this"),
        (429, "takes no more requests"),
    ],
)
def test_answers_that_refuse(hub: HubServer, status: int, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # The library waits long before it asks again where it is told to slow down.
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add("org/model", FILES)
    hub.status = status
    message_of("org/model", message)


def test_a_hub_that_is_down_or_away(
    hub: HubServer, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    hub.add("org/model", FILES)
    snapshot = fetch_snapshot("org/model")
    with caplog.at_level(logging.WARNING, "llmc"):
        hub.status = 502
        assert fetch_snapshot("org/model") == snapshot
        monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
        assert fetch_snapshot("org/model") == snapshot
    assert "org/model is taken as it is in its cache" in caplog.text
    message_of("org/other", r"the Hugging Face hub cannot be reached for org/other .*HTTPS_PROXY.* and HF_ENDPOINT")
    hub.status = 502
    monkeypatch.setattr(constants, "ENDPOINT", hub.address)
    message_of("org/other", "org/other cannot be had .*try again later")


def test_offline(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    hub.add("org/model", FILES)
    snapshot = fetch_snapshot("org/model")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    before = len(hub.requests)
    assert fetch_snapshot("org/model") == snapshot
    message_of(
        "org/other", r"not in the Hugging Face cache, and HF_HUB_OFFLINE forbids to ask the hub; fetch it where"
    )
    (snapshot.directory / "model.safetensors").unlink()
    message_of("org/model", r"only in part in the Hugging Face cache")
    assert len(hub.requests) == before


def test_proxies(hub: HubServer, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub.utils import close_session

    hub.add("org/model", FILES)
    for proxy, message in (
        ("http://name:secret@127.0.0.1:9", "cannot be reached|does not let"),
        ("gopher://x", "cannot be asked|cannot be reached|does not let"),
    ):
        close_session()
        monkeypatch.setenv("HTTP_PROXY", proxy)
        monkeypatch.setenv("NO_PROXY", "")
        assert "secret" not in message_of("org/model", message)
    monkeypatch.undo()
    close_session()


def test_a_full_disk(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import shutil

    hub.add("org/model", FILES)
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    message_of("org/model", r"org/model needs 0.0 GB more in .*free some space, or set HF_HOME")


def test_a_disk_that_fills_meanwhile(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    import errno

    from llmc.compiler.checkpoint import hub_files

    def write(self: object, piece: bytes) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    hub.add("org/model", FILES)
    monkeypatch.setattr(hub_files._Counted, "write", write)
    message_of("org/model", "the disk is full while org/model is fetched; free some space, or set HF_HOME")


def test_a_connection_that_breaks_is_taken_up_again(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/model", FILES)
    hub.cut_after = 1 << 16
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 4096)
    assert (fetch_snapshot("org/model").directory / "model.safetensors").read_bytes() == WEIGHTS
    assert any(hub.ranges)


def test_nothing_is_fetched_when_not_allowed(hub: HubServer) -> None:
    hub.add("llmc-test/never", FILES)
    with pytest.raises(CheckpointError, match="downloads are not allowed"):
        fetch_snapshot("llmc-test/never", allow_download=False)
    assert not hub.requests
