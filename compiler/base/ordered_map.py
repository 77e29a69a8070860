"""A function of many items, computed by a few threads ahead of whoever takes the results.

In: a function that works outside of Python's lock for most of its time (NumPy, reads, hashes), and items. Out: its
results in the order of the items, whatever the number of threads.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from llmc.compiler.base.processors import most_threads

Item = TypeVar("Item")
Result = TypeVar("Result")
MOST_THREADS = 16
"""Each holds an item's working memory, and results are taken by one thread."""


def usable_threads() -> int:
    """Processors that this process may use, its quota respected, at most :data:`MOST_THREADS`."""
    return min(MOST_THREADS, most_threads())


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], threads: int | None = None
) -> Iterator[Result]:
    """``function`` of each item, in order.

    At most one result more than there are threads is computed ahead, so memory does not grow with the number of
    items. What an item raises is raised in its place; nothing is begun after it, and none runs on when the iterator
    is left.

    Args:
        function: Safe to be called by several threads at a time.
        items: Taken one by one, by the caller's thread.
        threads: None: :func:`usable_threads`; 1: no thread is started.
    """
    threads = usable_threads() if threads is None else threads
    if threads == 1:
        yield from map(function, items)
        return
    ahead: deque[Future[Result]] = deque()
    with _single_threaded_torch(), ThreadPoolExecutor(threads, thread_name_prefix="llmc") as executor:
        try:
            for item in items:
                ahead.append(executor.submit(function, item))
                if len(ahead) > threads:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for future in ahead:
                future.cancel()


@contextmanager
def _single_threaded_torch() -> Iterator[None]:
    """Threads that begin in the block run torch's operators by themselves, where torch is loaded.

    Each of them would otherwise have as many helpers as there are processors. torch asks once in each thread's life
    how many it may have.
    """
    torch = sys.modules.get("torch")
    if torch is None:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
