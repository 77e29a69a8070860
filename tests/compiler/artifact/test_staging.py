"""The temporary sibling of an artifact: what is synced and when, who is locked out, what a failure leaves."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from llmc.compiler.artifact import staging
from llmc.compiler.artifact.staging import LOCK_NAME, Staging, remove_stale


@pytest.fixture
def output(tmp_path: Path) -> Path:
    return tmp_path / "out"


@pytest.fixture
def make(output: Path) -> Iterator[Callable[[], Staging]]:
    """Staging directories that are closed when the test ends."""
    made: list[Staging] = []

    def one() -> Staging:
        made.append(Staging(output))
        return made[-1]

    yield one
    for item in made:
        item.close()


def fill(folder: Path, text: str) -> Path:
    """Two levels of files."""
    (folder / "data").mkdir(parents=True)
    (folder / "llmc.json").write_text(text)
    (folder / "data" / "model.bin").write_text(text)
    return folder


def text_of(folder: Path) -> str:
    return (folder / "data" / "model.bin").read_text()


def left_beside(output: Path) -> list[str]:
    return sorted(path.name for path in output.parent.iterdir())


def open_files() -> set[str]:
    return {path.name for path in Path("/proc/self/fd").iterdir()}


# --- publish --------------------------------------------------------------------------------------------------------


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch, output: Path) -> list[str]:
    """What reaches the disk, in order: ``sync NAME``, ``move``, ``exchange``, ``aside``, ``remove``."""
    seen: list[str] = []
    sync, move, exchange, remove = os.fsync, staging.move_without_replacing, staging.exchange, staging.remove_tree

    def name(path: Path) -> str:
        return "parent" if path == output.parent else "staging" if path.suffix == ".partial" else path.name

    def synced(descriptor: int) -> None:
        sync(descriptor)
        seen.append(f"sync {name(Path(f'/proc/self/fd/{descriptor}').readlink())}")

    def moved(source: Path, target: Path) -> None:
        move(source, target)
        seen.append("move")

    def exchanged(first: Path, second: Path) -> bool:
        seen.append("exchange")
        return exchange(first, second)

    def removed(path: Path) -> None:
        remove(path)
        seen.append("remove")

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(staging, "move_without_replacing", moved)
    monkeypatch.setattr(staging, "exchange", exchanged)
    monkeypatch.setattr(staging, "remove_tree", removed)
    return seen


TREE = {"sync llmc.json", "sync data", "sync model.bin", "sync staging"}


def test_everything_is_on_the_disk_before_the_name_and_the_name_after(
    make: Callable[[], Staging], output: Path, events: list[str]
) -> None:
    """A machine that stops at any moment has the artifact whole or not at all."""
    written = make()
    fill(written.path, "new")
    written.publish(replace=False)
    assert events[4:] == ["move", "sync parent"]
    assert set(events[:4]) == TREE
    assert events.index("sync model.bin") < events.index("sync data") < events.index("sync staging")
    assert events.index("sync llmc.json") < events.index("sync staging")
    assert text_of(output) == "new"
    assert {path.name for path in output.iterdir()} == {"data", "llmc.json"}


def test_the_replaced_artifact_goes_when_the_exchange_is_on_the_disk(
    make: Callable[[], Staging], output: Path, events: list[str]
) -> None:
    fill(output, "old")
    written = make()
    fill(written.path, "new")
    written.publish(replace=True)
    assert set(events[:4]) == TREE
    assert events[4:] == ["exchange", "sync parent", "remove"]
    assert text_of(output) == "new"
    assert left_beside(output) == ["out"]


def test_replacing_nothing_is_a_move(make: Callable[[], Staging], output: Path, events: list[str]) -> None:
    fill((written := make()).path, "new")
    written.publish(replace=True)
    assert "move" in events
    assert "exchange" not in events
    assert text_of(output) == "new"


def test_nothing_is_replaced_unasked(make: Callable[[], Staging], output: Path) -> None:
    fill(output, "old")
    written = make()
    fill(written.path, "new")
    with pytest.raises(FileExistsError):
        written.publish(replace=False)
    assert text_of(output) == "old"
    written.close()
    assert left_beside(output) == ["out"]


def test_a_link_that_leads_nowhere_is_published(make: Callable[[], Staging], output: Path) -> None:
    written = make()
    (written.path / "link").symlink_to("nowhere")
    written.publish(replace=False)
    assert (output / "link").is_symlink()


def test_a_file_system_that_cannot_sync_a_folder(
    make: Callable[[], Staging], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "fsync", sync)
    fill((written := make()).path, "new")
    written.publish(replace=False)
    assert text_of(output) == "new"


@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC, errno.EDQUOT])
def test_what_cannot_be_synced_is_not_published(
    make: Callable[[], Staging], output: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def sync(descriptor: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", sync)
    fill((written := make()).path, "new")
    with pytest.raises(OSError, match=os.strerror(code)):
        written.publish(replace=False)
    assert not output.exists()


@pytest.mark.parametrize("fails", [False, True], ids=["published", "failed"])
def test_no_file_stays_open(
    make: Callable[[], Staging], output: Path, monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    def sync(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    if fails:
        monkeypatch.setattr(os, "fsync", sync)
    before = open_files()
    fill((written := make()).path, "new")
    if fails:
        with pytest.raises(OSError, match="Input/output"):
            written.publish(replace=False)
        written.close()
    else:
        written.publish(replace=False)
    assert open_files() <= before


def test_closing_twice_closes_nobody_elses_file(make: Callable[[], Staging], tmp_path: Path) -> None:
    written = make()
    written.close()
    with (tmp_path / "other").open("w") as other:  # it gets the lock's number
        written.close()
        other.write("kept")
    assert (tmp_path / "other").read_text() == "kept"


# --- where there is no exchange -------------------------------------------------------------------------------------


@pytest.fixture
def no_exchange(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(staging, "exchange", lambda first, second: False)


@pytest.mark.usefixtures("no_exchange")
def test_two_steps_replace_too(make: Callable[[], Staging], output: Path) -> None:
    fill(output, "old")
    fill((written := make()).path, "new")
    written.publish(replace=True)
    assert text_of(output) == "new"
    assert left_beside(output) == ["out"]


@pytest.mark.usefixtures("no_exchange")
@pytest.mark.parametrize("error", [OSError(errno.EIO, "Input/output error"), KeyboardInterrupt()])
def test_a_second_step_that_fails_puts_the_old_one_back(
    make: Callable[[], Staging], output: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    fill(output, "old")
    fill((written := make()).path, "new")
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if path == written.path:
            raise error
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", failing)
    with pytest.raises(type(error)):
        written.publish(replace=True)
    assert text_of(output) == "old"
    written.close()
    assert left_beside(output) == ["out"]


@pytest.mark.usefixtures("no_exchange")
def test_an_interrupt_after_the_second_step_leaves_the_new_one(
    make: Callable[[], Staging], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(output, "old")
    fill((written := make()).path, "new")
    rename = Path.rename

    def interrupted(path: Path, target: Path) -> Path:
        renamed = rename(path, target)
        if path == written.path:
            raise KeyboardInterrupt
        return renamed

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        written.publish(replace=True)
    written.close()
    assert text_of(output) == "new"
    assert left_beside(output) == ["out"]


@pytest.mark.usefixtures("no_exchange")
def test_an_old_one_that_cannot_be_put_back_is_not_thrown_away(
    make: Callable[[], Staging], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(output, "old")
    fill((written := make()).path, "new")
    rename = Path.rename

    def only_aside(path: Path, target: Path) -> Path:
        if path != output:
            raise OSError(errno.EIO, "Input/output error")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", only_aside)
    with pytest.raises(OSError, match="Input/output error"):
        written.publish(replace=True)
    written.close()
    (aside,) = output.parent.iterdir()
    assert (aside.suffix, text_of(aside)) == (".old", "old")


# --- the lock -------------------------------------------------------------------------------------------------------


def test_a_writer_holds_the_lock_until_it_closes(make: Callable[[], Staging], output: Path) -> None:
    written = make()
    assert written.path.parent == output.parent
    descriptor = os.open(written.path / LOCK_NAME, os.O_RDWR)
    try:
        with pytest.raises(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        written.close()
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    finally:
        os.close(descriptor)
    assert left_beside(output) == []


def test_two_writers_have_directories_of_their_own(make: Callable[[], Staging]) -> None:
    assert make().path != make().path


def test_a_file_system_without_locks(
    make: Callable[[], Staging], output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process id in the name has to do, and a free lock is none that is held."""

    def refuse(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    fill((written := make()).path, "new")
    left = output.with_name(".out.4711-0123abcd.partial")
    left.mkdir()
    (left / LOCK_NAME).touch()
    monkeypatch.setattr(staging, "_is_alive", lambda pid: pid != 4711)
    remove_stale(output)
    assert not left.exists()
    written.publish(replace=False)
    assert text_of(output) == "new"


def test_a_lock_that_cannot_be_made_leaves_no_directory(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opening = os.open

    def refuse(path: Any, *arguments: Any, **options: Any) -> int:
        if Path(path).name == LOCK_NAME:
            raise OSError(errno.ENOSPC, "No space left on device")
        return opening(path, *arguments, **options)

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(OSError, match="No space left"):
        Staging(output)
    assert left_beside(output) == []


def no_more_files(free: int) -> list[int]:
    """All descriptors that this process may open but so many."""
    taken = []
    with contextlib.suppress(OSError):
        while True:
            taken.append(os.open(os.devnull, os.O_RDONLY))
    for _ in range(free):
        os.close(taken.pop())
    return taken


@pytest.fixture
def few_files() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 256), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_directory_goes_although_no_file_can_be_opened(few_files: None, output: Path) -> None:
    written = Staging(output)
    fill(written.path, "half")
    (written.path / "data" / "deeper" / "still").mkdir(parents=True)
    taken = no_more_files(0)
    written.close()
    for descriptor in taken:
        os.close(descriptor)
    assert left_beside(output) == []


@pytest.mark.parametrize("free", range(10))
def test_a_directory_that_cannot_have_its_descriptors_is_not_there(few_files: None, output: Path, free: int) -> None:
    taken, refused = no_more_files(free), False
    try:
        Staging(output).close()
    except OSError as error:
        refused = error.errno == errno.EMFILE
    finally:
        for descriptor in taken:
            os.close(descriptor)
    assert refused == (free < 1 + staging._SPARE)
    assert left_beside(output) == []
