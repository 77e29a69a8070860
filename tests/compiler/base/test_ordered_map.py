"""Results in the order of the items, a few ahead."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from llmc.compiler.base import ordered_map as module
from llmc.compiler.base.ordered_map import ordered_map, usable_threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_order_is_that_of_the_items(threads: int) -> None:
    """Of two threads the second is done first: the first item waits for the second one."""
    second = threading.Event()

    def function(item: int) -> int:
        if threads > 1:
            second.wait(timeout=10) if item == 0 else second.set()
        return item * item

    assert list(ordered_map(function, range(9), threads)) == [0, 1, 4, 9, 16, 25, 36, 49, 64]


def test_items_are_taken_as_results_are() -> None:
    """One more than there are threads, and only the caller's thread takes them."""
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(20):
            assert threading.current_thread() is threading.main_thread()
            taken.append(item)
            yield item

    results = ordered_map(lambda item: -item, items(), 3)
    assert taken == []
    assert [next(results), len(taken)] == [0, 4]
    assert [next(results), len(taken)] == [-1, 5]
    results.close()  # type: ignore[attr-defined]
    assert len(taken) == 5


def test_one_thread_is_the_caller_s() -> None:
    assert list(ordered_map(lambda item: threading.current_thread(), [0], 1)) == [threading.main_thread()]
    (other,) = ordered_map(lambda item: threading.current_thread(), [0], 2)
    assert other is not threading.main_thread()


def test_an_error_comes_in_its_place_and_ends_the_rest() -> None:
    begun: list[int] = []

    def function(item: int) -> int:
        begun.append(item)
        return 1 // (2 - item)

    results = ordered_map(function, range(50), 2)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)
    assert len(begun) <= 5
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("llmc")]


def test_nothing_runs_on_when_the_iterator_is_left() -> None:
    results = ordered_map(lambda item: item, range(50), 3)
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("llmc")]


def test_torch_has_one_thread_in_each_of_them() -> None:
    """And as many as before afterwards, here and in other threads; alone it keeps them."""
    import torch

    def count(item: int) -> int:
        return torch.get_num_threads()

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        assert list(ordered_map(count, range(4), 2)) == [1, 1, 1, 1]
        assert torch.get_num_threads() == 3
        with ThreadPoolExecutor(1) as executor:
            assert executor.submit(count, 0).result() == 3
        assert list(ordered_map(count, [0], 1)) == [3]
        results = ordered_map(count, range(9), 2)
        next(results)
        results.close()  # type: ignore[attr-defined]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_threads_are_the_processors_that_may_be_used(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(3)), raising=False)
    assert usable_threads() == 3
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(64)))
    assert usable_threads() == module.MOST_THREADS == 16
    monkeypatch.delattr(os, "sched_getaffinity")
    for count, expected in ((5, 5), (None, 1)):
        monkeypatch.setattr(os, "cpu_count", lambda count=count: count)
        assert usable_threads() == expected
