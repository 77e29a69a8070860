"""A disk that is full, found by whoever writes: one sentence, nothing half-written, the old artifact intact."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from llmc.compiler.artifact import artifact
from llmc.compiler.artifact.artifact import new_artifact, open_artifact, write_manifest
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import ArtifactError


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 2 MiB; skipped where this user may not mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if not mounted or mounted.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_full_disk_leaves_the_old_artifact(small_disk: Path, manifest: Manifest) -> None:
    output = small_disk / "out"
    with new_artifact(output) as directory:
        write_manifest(directory, manifest)
    with (
        pytest.raises(ArtifactError, match=r"the disk is full: .* written for .*/out and .* free; free some space"),
        new_artifact(output, overwrite=True) as directory,
    ):
        (directory / "model.bin").write_bytes(bytes(4 << 20))
    assert open_artifact(output).manifest == manifest
    assert left_in(small_disk) == ["out"]


def test_numpys_short_write_is_a_full_disk(small_disk: Path) -> None:
    with pytest.raises(ArtifactError, match="the disk is full"), new_artifact(small_disk / "out") as directory:
        np.zeros(1 << 20).tofile(directory / "model.bin")
    assert left_in(small_disk) == []


def test_a_disk_that_is_full_from_the_start(small_disk: Path) -> None:
    with pytest.raises(OSError, match="No space left"), (small_disk / "hog").open("wb") as file:
        file.write(bytes(4 << 20))
    with pytest.raises(ArtifactError, match="disk"), new_artifact(small_disk / "out") as directory:
        (directory / "model.bin").write_bytes(bytes(1 << 16))
    assert left_in(small_disk) == ["hog"]


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        RuntimeError("write failed: No space left on device (os error 28)"),
    ],
)
@pytest.mark.parametrize("wrapped", [False, True])
def test_a_full_disk_is_one_sentence_whoever_reports_it(tmp_path: Path, error: Exception, wrapped: bool) -> None:
    if wrapped:
        outer = ValueError("serialization failed")
        outer.__cause__ = error
        error = outer

    def write_half() -> None:
        with new_artifact(tmp_path / "out", required_bytes=1024) as directory:
            (directory / "model.bin").write_text("half")
            raise error

    with pytest.raises(ArtifactError, match=r"the disk is full: 4 bytes of 1\.0 KiB needed written for"):
        write_half()
    assert left_in(tmp_path) == []


@pytest.mark.parametrize(("how", "full"), [("from", True), ("while handling", True), ("instead of", False)])
def test_a_full_disk_behind_another_error(tmp_path: Path, how: str, full: bool) -> None:
    """Raised from it or while it was handled; an error that was raised in its place tells another story."""

    def write_half() -> None:
        with new_artifact(tmp_path / "out"):
            try:
                raise OSError(errno.ENOSPC, "No space")
            except OSError as error:
                if how == "while handling":
                    raise ValueError("serialization failed")  # noqa: B904
                raise ValueError("serialization failed") from (error if how == "from" else None)

    with pytest.raises(ArtifactError if full else ValueError, match="the disk is full" if full else "serialization"):
        write_half()


@pytest.mark.parametrize(("free", "full"), [(1000, True), (1 << 30, False)])
def test_an_error_without_a_number_is_a_full_disk_where_nearly_nothing_is_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, full: bool
) -> None:
    """As NumPy raises it."""

    def write_half() -> None:
        with new_artifact(tmp_path / "out"):
            monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=free))
            raise OSError("4096 requested and 512 written")

    with pytest.raises(ArtifactError if full else OSError, match="the disk is full" if full else "4096 requested"):
        write_half()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_without_room_for_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    def refuse(output: Path) -> None:
        raise OSError(code, os.strerror(code), str(output))

    monkeypatch.setattr(artifact, "Staging", refuse)
    with (
        pytest.raises(ArtifactError, match=r"the disk is full: 0 bytes written for .*/out and .* free"),
        new_artifact(tmp_path / "out"),
    ):
        pytest.fail("the body must not run")


def test_a_full_disk_found_only_when_syncing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(ArtifactError, match="the disk is full"), new_artifact(tmp_path / "out") as directory:
        (directory / "model.bin").write_text("one")
    assert left_in(tmp_path) == []


def test_too_little_space_is_known_before_any_work(tmp_path: Path) -> None:
    with (
        pytest.raises(ArtifactError, match=r"out needs 1048576\.0 GiB and its disk has .* free"),
        new_artifact(tmp_path / "out", required_bytes=1 << 50),
    ):
        pytest.fail("the body must not run")
    assert left_in(tmp_path) == []


def test_other_errors_of_the_system_pass_unchanged(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), new_artifact(tmp_path / "out"):
        raise PermissionError(errno.EACCES, "Permission denied")
