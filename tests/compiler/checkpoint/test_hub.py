from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import errors

from llmc.compiler.base.errors import CheckpointError
from llmc.compiler.checkpoint.hub import fetch_snapshot, is_hub_id


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


def replaced(monkeypatch: pytest.MonkeyPatch, result: Any) -> dict[str, Any]:
    seen: dict[str, Any] = {}

    def download(repository: str, **options: Any) -> str:
        seen.update(options, repository=repository)
        if isinstance(result, Exception):
            raise result
        return str(result)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return seen


def test_only_what_is_needed_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen = replaced(monkeypatch, tmp_path)
    assert fetch_snapshot("org/model") == tmp_path
    assert seen["local_files_only"] is False
    wanted = list(
        huggingface_hub.utils.filter_repo_objects(
            [
                "model-00001-of-00002.safetensors",
                "model.safetensors.index.json",
                "config.json",
                "tokenizer.model",
                "chat_template.jinja",
                "merges.txt",
                "tokenizer.something",
                "README.md",
                "pytorch_model.bin",
                "consolidated.safetensors",
                "onnx/model.onnx",
                "original/tokenizer.model",
                "modeling_x.py",
            ],
            allow_patterns=seen["allow_patterns"],
            ignore_patterns=seen["ignore_patterns"],
        )
    )
    assert wanted == [
        "model-00001-of-00002.safetensors",
        "model.safetensors.index.json",
        "config.json",
        "tokenizer.model",
        "chat_template.jinja",
        "merges.txt",
        "tokenizer.something",
        "README.md",
    ]
    assert "*.py" not in seen["allow_patterns"]
    fetch_snapshot("org/model", allow_download=False, with_code=True)
    assert seen["local_files_only"] is True
    assert "*.py" in seen["allow_patterns"]


# What the hub's errors read of an HTTP response.
RESPONSE: Any = SimpleNamespace(headers={}, request=None, status_code=404)


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (errors.GatedRepoError("gated", response=RESPONSE), "is gated .* accept its terms"),
        (errors.RepositoryNotFoundError("gone", response=RESPONSE), "neither a path here nor a repository"),
        (errors.LocalEntryNotFoundError("offline"), "the hub cannot be reached"),
        (errors.HfHubHTTPError("Bad gateway\nlong", response=RESPONSE), r"\(Bad gateway\); try again later"),
        (OSError("no space"), "cannot be fetched .*no space"),
    ],
)
def test_failures_are_one_sentence(monkeypatch: pytest.MonkeyPatch, error: Exception, message: str) -> None:
    replaced(monkeypatch, error)
    with pytest.raises(CheckpointError, match=message) as raised:
        fetch_snapshot("org/model")
    assert "\n" not in str(raised.value)


def test_nothing_is_fetched_when_not_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(CheckpointError, match="downloads are not allowed"):
        fetch_snapshot("llmc-test/never", allow_download=False)
