"""A reference's logits on disk: computed once, window by window, whole or not at all, told apart by content."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from llmc.compiler.base.errors import ArtifactError, EngineError, UsageError
from llmc.compiler.base.progress import NO_PROGRESS
from llmc.runtimes.evaluation import reference_cache
from llmc.runtimes.evaluation.reference_cache import GREEDY, GREEDY_TOKENS, ReferenceCache
from llmc.runtimes.evaluation.reference_rows import RowsComparison
from llmc.runtimes.evaluation.scored_rows import greedy_continuations, session_source

Make = Callable[..., Any]
IDENTITY = {"model": {"weights": "abc"}}


def windows(count: int = 3, length: int = 12, seed: int = 4) -> Any:
    return np.random.default_rng(seed).integers(0, 50, (count, length))


@pytest.fixture
def opened() -> list[Any]:
    """The sessions that :func:`complete` opened."""
    return []


def complete(cache: ReferenceCache, fake_session: Make, opened: list[Any]) -> ReferenceCache:
    def reference() -> Any:
        opened.append(fake_session())
        return opened[-1]

    cache.complete(reference, NO_PROGRESS)
    return cache


def test_what_is_kept_is_what_the_reference_says(tmp_path: Path, fake_session: Make, opened: list[Any]) -> None:
    cache = complete(ReferenceCache(tmp_path, IDENTITY, windows()), fake_session, opened)
    comparison = RowsComparison()
    for rows in session_source(fake_session())(windows(), 6):
        kept = cache.rows(rows.window)
        comparison.update(kept[rows.start : rows.start + len(rows.logits)], rows.logits)
        np.testing.assert_array_equal(kept.targets, windows()[rows.window, 7:])
    quality = comparison.result()
    assert quality.positions == 3 * 5
    assert quality.mean_kl.value == pytest.approx(0, abs=1e-7)
    np.testing.assert_array_equal(
        cache.continuations(), greedy_continuations(fake_session(), windows()[:, :6], GREEDY_TOKENS)
    )


def test_what_is_there_is_not_computed_again(tmp_path: Path, fake_session: Make, opened: list[Any]) -> None:
    for _ in range(2):
        complete(ReferenceCache(tmp_path, IDENTITY, windows()), fake_session, opened)
    assert len(opened) == 1


def test_a_run_goes_on_where_it_was_interrupted(
    tmp_path: Path, fake_session: Make, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    record, done = ReferenceCache._record, []

    def interrupted(self: ReferenceCache, session: Any, index: int) -> None:
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(index)
        record(self, session, index)

    monkeypatch.setattr(ReferenceCache, "_record", interrupted)
    with pytest.raises(KeyboardInterrupt):
        complete(ReferenceCache(tmp_path, IDENTITY, windows()), fake_session, opened)
    monkeypatch.setattr(ReferenceCache, "_record", record)
    cache = ReferenceCache(tmp_path, IDENTITY, windows())
    assert cache.missing == [2]
    complete(cache, fake_session, opened)
    assert [shape for shape, _ in opened[1].calls if shape == (1, 12)] == [(1, 12)]
    assert cache.missing == []


def test_only_the_continuation_may_be_missing(tmp_path: Path, fake_session: Make, opened: list[Any]) -> None:
    cache = complete(ReferenceCache(tmp_path, IDENTITY, windows()), fake_session, opened)
    (cache.directory / GREEDY).unlink()
    complete(cache, fake_session, opened)
    assert (cache.directory / GREEDY).is_file()
    assert len(opened) == 2


def test_content_makes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = ReferenceCache(tmp_path, IDENTITY, windows()).directory
    assert ReferenceCache(tmp_path, dict(IDENTITY), windows()).directory == one
    others = [
        ReferenceCache(tmp_path, {"model": {"weights": "abd"}}, windows()),
        ReferenceCache(tmp_path, IDENTITY, windows(seed=5)),
        ReferenceCache(tmp_path, IDENTITY, windows()[:2]),
        ReferenceCache(tmp_path, IDENTITY, windows().reshape(2, 18)),
    ]
    monkeypatch.setattr(reference_cache, "FORMAT", 99)
    others.append(ReferenceCache(tmp_path, IDENTITY, windows()))
    assert len({one, *(cache.directory for cache in others)}) == 6


def test_a_file_appears_whole_or_not_at_all(
    tmp_path: Path, fake_session: Make, opened: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, content: Any) -> None:
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(reference_cache, "_save", full)
    cache = ReferenceCache(tmp_path, IDENTITY, windows())
    with pytest.raises(ArtifactError, match="No space left on device"):
        complete(cache, fake_session, opened)
    assert [path.name for path in cache.directory.iterdir()] == ["about.json"]


def test_a_damaged_file_is_named(tmp_path: Path, fake_session: Make, opened: list[Any]) -> None:
    cache = complete(ReferenceCache(tmp_path, IDENTITY, windows()), fake_session, opened)
    path = cache.directory / "00001.npz"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ArtifactError, match=r"00001\.npz is damaged"):
        ReferenceCache(tmp_path, IDENTITY, windows()).rows(1)


def test_the_reference_is_closed_when_it_fails(tmp_path: Path, fake_session: Make) -> None:
    session, closed = fake_session(max_context=5), []
    session.close = lambda: closed.append(True)
    with pytest.raises(UsageError, match="context of 5"):
        ReferenceCache(tmp_path, IDENTITY, windows()).complete(lambda: session, NO_PROGRESS)
    assert closed == [True]


def test_where_the_reference_is_not_finite(tmp_path: Path, fake_session: Make) -> None:
    session = fake_session()
    whole = session.forward

    def broken(ids: Any, *rest: Any, **named: Any) -> Any:
        logits = whole(ids, *rest, **named)
        if ids[0, 0] == windows()[2, 0]:
            logits.host()[0, 8, 3] = np.nan
        return logits

    session.forward = broken
    with pytest.raises(EngineError, match=r"the reference's logits .* nan for token 3 after 9 tokens of window 3;"):
        ReferenceCache(tmp_path, IDENTITY, windows()).complete(lambda: session, NO_PROGRESS)


@pytest.mark.parametrize("name", ["file", "file/under", "loop"])
def test_a_place_that_holds_no_folder_is_said_before_the_reference_is_opened(
    tmp_path: Path, fake_session: Make, opened: list[Any], name: str
) -> None:
    (tmp_path / "file").write_text("")
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ArtifactError, match=rf"{name}/.* cannot be written \(.*\); free some space, or name another"):
        complete(ReferenceCache(tmp_path / name, {"a": "b"}, windows()), fake_session, opened)
    assert opened == []
