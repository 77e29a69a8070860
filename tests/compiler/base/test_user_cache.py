"""Where things are kept that can be made again, whatever the home is like."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest

from llmc.compiler.base import user_cache as module
from llmc.compiler.base.user_cache import home_cache, user_cache


@pytest.fixture
def places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """A home, and a folder for temporary files with this user's in it."""
    home, temporary = tmp_path / "home", tmp_path / "tmp"
    for folder in (home, temporary):
        folder.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    return home, temporary / f"llmc-{module.os.getuid()}"


def no_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


def test_the_home_where_it_can_be_written(places: tuple[Path, Path]) -> None:
    assert user_cache("kernels") == home_cache("kernels") == places[0] / ".cache" / "llmc" / "kernels"
    assert list((places[0] / ".cache" / "llmc" / "kernels").iterdir()) == []
    assert not places[1].exists()


def test_a_user_without_a_home(places: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "home", no_home)
    assert home_cache("kernels") is None
    assert user_cache("kernels") == places[1] / "kernels"
    assert places[1].stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("where", [".cache", ".cache/llmc", ".cache/llmc/kernels"])
def test_a_home_that_cannot_be_written(places: tuple[Path, Path], where: str) -> None:
    blocked = places[0] / where  # a file in the place of a folder: not even root writes there
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.touch()
    assert user_cache("kernels") == places[1] / "kernels"
    assert (places[1] / "kernels").is_dir()


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_is_not_trusted(places: tuple[Path, Path], mode: int) -> None:
    (places[0] / ".cache").touch()
    places[1].mkdir()
    places[1].chmod(mode)
    assert user_cache("kernels") == home_cache("kernels")


def test_a_link_or_somebody_else_s_folder_is_not_trusted(
    places: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (places[0] / ".cache").touch()
    (tmp_path / "elsewhere").mkdir(mode=0o700)
    places[1].symlink_to(tmp_path / "elsewhere")
    assert user_cache("kernels") == home_cache("kernels")
    monkeypatch.setattr(Path, "home", no_home)
    other = user_cache("kernels")
    assert other.is_dir()
    assert not other.is_relative_to(places[1])
