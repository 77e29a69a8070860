"""Artifact directories: all or nothing, and never somebody else's files."""

from __future__ import annotations

import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from llmc.compiler.artifact import artifact, atomic_rename, staging
from llmc.compiler.artifact.artifact import new_artifact, open_artifact, write_manifest
from llmc.compiler.artifact.manifest import Manifest
from llmc.compiler.base.errors import ArtifactError, UsageError


def write(output: Path, manifest: Manifest, text: str, *, overwrite: bool = False) -> None:
    with new_artifact(output, overwrite=overwrite) as directory:
        (directory / "data").mkdir()
        (directory / "data" / "model.bin").write_text(text)
        write_manifest(directory, manifest)


def content(output: Path) -> str:
    return open_artifact(output).file("data/model.bin").read_text()


def left_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(params=["exchange", "two steps"])
def both_ways(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the kernel's exchange, and as on a file system that does not offer it."""
    if request.param == "two steps":
        monkeypatch.setattr(atomic_rename, "_renameat2", lambda: None)


def test_a_new_artifact_opens_and_records_its_files(tmp_path: Path, manifest: Manifest) -> None:
    output = tmp_path / "made" / "parents" / "out"
    write(output, manifest, "one")
    opened = open_artifact(output)
    assert sorted(opened.manifest.files) == ["data/model.bin"]
    assert opened.manifest.files["data/model.bin"].bytes == 3
    assert opened.manifest == dataclasses.replace(manifest, files=opened.manifest.files)
    opened.check_hashes()
    assert left_in(output) == ["data", "llmc.json"]
    assert left_in(output.parent) == ["out"]
    with pytest.raises(ArtifactError, match="records no missing"):
        opened.file("missing")


def test_the_same_input_gives_the_same_bytes(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "a", manifest, "one")
    write(tmp_path / "b", manifest, "one")
    assert (tmp_path / "a" / "llmc.json").read_bytes() == (tmp_path / "b" / "llmc.json").read_bytes()


def test_the_directory_has_the_users_permissions(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "out", manifest, "one")
    (tmp_path / "plain").mkdir()
    assert (tmp_path / "out").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_an_existing_output_is_refused_before_any_work(tmp_path: Path, manifest: Manifest) -> None:
    output = tmp_path / "out"
    write(output, manifest, "one")
    with pytest.raises(ArtifactError, match=r"out exists already; .*--overwrite"), new_artifact(output):
        pytest.fail("the body must not run")
    assert content(output) == "one"
    (tmp_path / "empty").mkdir()
    with pytest.raises(ArtifactError, match="exists already"), new_artifact(tmp_path / "empty"):
        pytest.fail("the body must not run")


@pytest.mark.usefixtures("both_ways")
def test_overwrite_replaces_in_full(tmp_path: Path, manifest: Manifest) -> None:
    output = tmp_path / "out"
    write(output, manifest, "one")
    (output / "extra").write_text("of the old one")
    write(output, manifest, "two", overwrite=True)
    assert content(output) == "two"
    assert left_in(output) == ["data", "llmc.json"]
    assert left_in(tmp_path) == ["out"]


@pytest.mark.usefixtures("both_ways")
def test_overwrite_of_nothing_and_of_an_empty_directory(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "new", manifest, "one", overwrite=True)
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", manifest, "one", overwrite=True)
    assert content(tmp_path / "new") == content(tmp_path / "empty") == "one"


def test_foreign_files_are_never_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "chapter").write_text("years")
    with (
        pytest.raises(ArtifactError, match=r"not an llmc artifact .* not even with --overwrite"),
        new_artifact(folder, overwrite=True),
    ):
        pytest.fail("the body must not run")
    with pytest.raises(ArtifactError, match="not a directory"), new_artifact(folder / "chapter", overwrite=True):
        pytest.fail("the body must not run")
    assert (folder / "chapter").read_text() == "years"


def test_foreign_files_that_appear_meanwhile_are_not_replaced(tmp_path: Path) -> None:
    output = tmp_path / "out"

    def write_while_somebody_else_does() -> None:
        with new_artifact(output, overwrite=True) as directory:
            (directory / "model.bin").write_text("one")
            output.mkdir()
            (output / "chapter").write_text("years")

    with pytest.raises(ArtifactError, match="not an llmc artifact"):
        write_while_somebody_else_does()
    assert left_in(output) == ["chapter"]
    assert left_in(tmp_path) == ["out"]


@pytest.mark.usefixtures("both_ways")
def test_an_output_that_appears_meanwhile_is_not_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    # Even in the moment after the last check.
    monkeypatch.setattr(artifact, "_require_replaceable", lambda output, overwrite: None)
    with pytest.raises(ArtifactError, match="made by another process meanwhile"), new_artifact(output):
        output.mkdir()
    assert left_in(tmp_path) == ["out"]


@pytest.mark.parametrize("error", [UsageError("wrong"), RuntimeError("wrong"), KeyboardInterrupt(), SystemExit(3)])
def test_a_failure_leaves_the_old_one(tmp_path: Path, manifest: Manifest, error: BaseException) -> None:
    output = tmp_path / "out"
    write(output, manifest, "one")

    def write_half() -> None:
        with new_artifact(output, overwrite=True) as directory:
            (directory / "model.bin").write_text("half")
            raise error

    with pytest.raises(type(error)) as caught:
        write_half()
    assert caught.value is error
    assert content(output) == "one"
    assert left_in(tmp_path) == ["out"]


def test_a_failure_between_the_two_steps_puts_the_old_one_back(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    write(output, manifest, "one")
    monkeypatch.setattr(staging, "exchange", lambda first, second: False)
    rename = Path.rename

    def fail_for_the_new_one(path: Path, target: Path) -> Path:
        if path.suffix == ".partial":
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", fail_for_the_new_one)
    with pytest.raises(ArtifactError, match="cannot be put in its place"):
        write(output, manifest, "two", overwrite=True)
    assert content(output) == "one"
    assert left_in(tmp_path) == ["out"]


def test_an_old_one_that_cannot_be_put_back_is_kept_for_the_next_run(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "out"
    write(output, manifest, "one")
    rename = Path.rename

    def only_aside(path: Path, target: Path) -> Path:
        if path != output:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    with monkeypatch.context() as patch:
        patch.setattr(staging, "exchange", lambda first, second: False)
        patch.setattr(Path, "rename", only_aside)
        with pytest.raises(ArtifactError, match="cannot be put in its place"):
            write(output, manifest, "two", overwrite=True)
    (aside,) = tmp_path.iterdir()
    assert content(aside) == "one"
    # The next run is another process.
    monkeypatch.setattr(staging, "_is_alive", lambda pid: False)
    write(output, manifest, "three", overwrite=True)
    assert content(output) == "three"
    assert left_in(tmp_path) == ["out"]


def test_a_link_goes_on_pointing_to_the_artifact(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "real", manifest, "one")
    (tmp_path / "link").symlink_to("real")
    write(tmp_path / "link", manifest, "two", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert content(tmp_path / "real") == "two"


def test_a_parent_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match="cannot be made"), new_artifact(tmp_path / "file" / "out"):
        pytest.fail("the body must not run")


def test_a_parent_that_may_not_be_written(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path; from llmc.compiler.artifact.artifact import new_artifact\n"
        "parent = Path(sys.argv[1]); parent.chmod(0o555)\n"
        "if os.geteuid() == 0: os.chown(parent, 1, 1); os.setgid(65534); os.setuid(65534)\n"
        "try:\n    with new_artifact(parent / 'out'): pass\n"
        "except Exception as error: print(type(error).__name__, error)\n"
    )
    # Not below pytest's own folder, which other users may not enter.
    parent = Path("/dev/shm") / f"llmc-test-{os.getpid()}"
    parent.mkdir()
    try:
        done = subprocess.run([sys.executable, "-c", code, str(parent)], capture_output=True, text=True, check=True)
    finally:
        shutil.rmtree(parent)
    assert "ArtifactError" in done.stdout
    assert "cannot be made (Permission denied" in done.stdout


@pytest.mark.parametrize("name", ["/", "out\0"])
def test_unusable_names(name: str) -> None:
    with pytest.raises(ArtifactError), new_artifact(Path(name)):
        pytest.fail("the body must not run")


def test_a_name_that_is_too_long(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match="File name too long"), new_artifact(tmp_path / ("n" * 250)):
        pytest.fail("the body must not run")


def test_two_writers_do_not_disturb_each_other(tmp_path: Path, manifest: Manifest) -> None:
    output = tmp_path / "out"
    with new_artifact(output, overwrite=True) as first:
        (first / "data").mkdir()
        (first / "data" / "model.bin").write_text("first")
        write(output, manifest, "second")
        write_manifest(first, manifest)
    assert content(output) == "first"
    assert left_in(tmp_path) == ["out"]


@pytest.mark.parametrize("name", ["file.txt", "not-there"])
def test_opening_what_is_no_directory(tmp_path: Path, name: str) -> None:
    (tmp_path / "file.txt").write_text("")
    with pytest.raises(ArtifactError, match=r"is not a directory|does not exist"):
        open_artifact(tmp_path / name)


@pytest.mark.parametrize("damaged", ["a", "data/model.bin", "z"])
def test_every_file_is_looked_at(tmp_path: Path, manifest: Manifest, damaged: str) -> None:
    output = tmp_path / "out"
    with new_artifact(output) as directory:
        (directory / "data").mkdir()
        for name in ("a", "data/model.bin", "z"):
            (directory / name).write_text("whole")
        write_manifest(directory, manifest)
    (output / damaged).write_text("holes")
    with pytest.raises(ArtifactError, match=f"out/{damaged} is damaged"):
        open_artifact(output).check_hashes()
    (output / damaged).write_text("longer than before")
    with pytest.raises(ArtifactError, match=f"{damaged} has 18 bytes, and llmc.json records 5"):
        open_artifact(output)
    (output / damaged).unlink()
    (output / damaged).mkdir()
    with pytest.raises(ArtifactError, match=f"{damaged} is missing"):
        open_artifact(output)


def test_the_manifest_records_the_files_that_are_there_and_not_itself(tmp_path: Path, manifest: Manifest) -> None:
    """However often it is written, and whatever the one before said."""
    (tmp_path / "model.bin").write_text("one")
    first = write_manifest(tmp_path, manifest)
    (tmp_path / "model.bin").unlink()
    (tmp_path / "other.bin").write_text("two")
    (tmp_path / ".lock").touch()
    second = write_manifest(tmp_path, first)
    assert (list(first.files), list(second.files)) == (["model.bin"], ["other.bin"])
    assert open_artifact(tmp_path).manifest == second


def test_a_file_that_is_not_recorded_is_not_given(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "out", manifest, "one")
    (tmp_path / "out" / "later.bin").write_text("put there by hand")
    with pytest.raises(ArtifactError, match=r"records no later\.bin; make the engine artifact again with it"):
        open_artifact(tmp_path / "out").file("later.bin")


def test_the_home_folder_by_its_sign(tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    write(Path("~/out"), manifest, "one")
    assert left_in(tmp_path) == ["out"]


def test_opening_a_directory_without_a_manifest(tmp_path: Path) -> None:
    with pytest.raises(ArtifactError, match=r"has no llmc\.json"):
        open_artifact(tmp_path)


def test_opening_another_schema_version(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "out", manifest, "one")
    record = json.loads((tmp_path / "out" / "llmc.json").read_text())
    (tmp_path / "out" / "llmc.json").write_text(json.dumps({**record, "schema_version": 9}))
    with pytest.raises(ArtifactError, match="has schema version 9"):
        open_artifact(tmp_path / "out")
    (tmp_path / "out" / "llmc.json").write_bytes(b"\xff\xfe")
    with pytest.raises(ArtifactError, match="cannot be read"):
        open_artifact(tmp_path / "out")


def test_opening_a_damaged_artifact(tmp_path: Path, manifest: Manifest) -> None:
    write(tmp_path / "out", manifest, "one")
    file = tmp_path / "out" / "data" / "model.bin"
    file.write_text("two")  # of the same size: only the hashes tell
    with pytest.raises(ArtifactError, match=r"model\.bin is damaged"):
        open_artifact(tmp_path / "out").check_hashes()
    file.write_text("o")
    with pytest.raises(ArtifactError, match=r"model\.bin has 1 bytes, and llmc\.json records 3"):
        open_artifact(tmp_path / "out")
    file.unlink()
    with pytest.raises(ArtifactError, match=r"model\.bin is missing"):
        open_artifact(tmp_path / "out")


def test_an_artifact_moved_aside_by_a_killed_swap_comes_back(
    tmp_path: Path, manifest: Manifest, caplog: pytest.LogCaptureFixture
) -> None:
    output = tmp_path / "out"
    write(output, manifest, "one")
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    output.rename(tmp_path / f".out.{dead.pid}-0123abcd.old")
    (tmp_path / f".out.{dead.pid}-0123abcd.partial").mkdir()
    with caplog.at_level(logging.WARNING), pytest.raises(ArtifactError, match="exists already"), new_artifact(output):
        pytest.fail("the body must not run")
    assert content(output) == "one"
    assert left_in(tmp_path) == ["out"]
    assert "put back" in caplog.text
    assert "left by an interrupted run" in caplog.text
    assert caplog.text.index("put back") < caplog.text.index("left by an interrupted run")


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "llmc.json")
    with pytest.raises(ArtifactError, match=r"llmc\.json is a pipe, a socket or a device"):
        open_artifact(tmp_path)


def test_a_name_that_is_no_text_is_refused_before_anything_is_written(tmp_path: Path, manifest: Manifest) -> None:
    """Tokenizers and runtimes could not open it."""
    name = os.fsdecode(b"o\xff")
    with pytest.raises(ArtifactError, match="name that is not UTF-8"), new_artifact(tmp_path / name):
        pytest.fail("the body must not run")
    assert left_in(tmp_path) == []
    write(tmp_path / "out", manifest, "one")
    (tmp_path / "out").rename(tmp_path / name)
    with pytest.raises(ArtifactError, match="name that is not UTF-8"):
        open_artifact(tmp_path / name)
    (tmp_path / "link").symlink_to(name)
    assert open_artifact(tmp_path / "link").path == tmp_path / "link"
