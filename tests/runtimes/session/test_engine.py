"""What every session asks of a chunk: room, rows, positions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.session.engine import EngineInfo, chunk_positions, require_room, valid_tokens

INFO = EngineInfo("test", 50, 1, 64, "all", "grow", 4, 4, "fp32", 1, max_batch=3)


def array(*numbers: int) -> np.ndarray:
    return np.array(numbers, np.int64)


def test_room_up_to_what_the_engine_holds() -> None:
    require_room(INFO, 1, 1)
    require_room(INFO, 3, 64)
    require_room(replace(INFO, max_batch=None), 1000, 64)


@pytest.mark.parametrize(
    ("batch", "capacity", "message"),
    [
        (0, 4, "a cache of 0 rows and 4 tokens holds nothing"),
        (4, 0, "a cache of 4 rows and 0 tokens holds nothing"),
        (3, 65, "65 tokens are more than this engine's context of 64; shorten"),
        (4, 64, "4 rows are more than the 3 that this engine was built for"),
    ],
)
def test_room_beyond_it(batch: int, capacity: int, message: str) -> None:
    with pytest.raises(EngineError, match=message):
        require_room(INFO, batch, capacity)


def test_valid_tokens_are_the_lengths_or_all_columns() -> None:
    ids = np.zeros((3, 4), np.int64)
    assert valid_tokens(array(0, 2, 1), 6, ids, None).tolist() == [4, 4, 4]
    assert valid_tokens(array(0, 2, 1), 6, ids, array(0, 3, 4)).tolist() == [0, 3, 4]


def test_a_row_is_filled_and_no_more() -> None:
    """Padding takes no room here; whether it does is a session's affair."""
    ids = np.zeros((2, 4), np.int64)
    assert valid_tokens(array(5, 1), 6, ids, array(1, 4)).tolist() == [1, 4]
    for held, lengths, needed in (((5, 1), (2, 1), 7), ((1, 4), (0, 3), 7), ((3, 0), None, 7)):
        with pytest.raises(EngineError, match=f"a row would hold {needed} tokens, but the cache has room for 6"):
            valid_tokens(array(*held), 6, ids, None if lengths is None else array(*lengths))


def test_another_number_of_rows_is_refused() -> None:
    with pytest.raises(EngineError, match="the session holds 2 rows, not 3; reset it first"):
        valid_tokens(array(0, 0), 6, np.zeros((3, 1), np.int64), None)


def test_positions_go_on_where_each_row_ends() -> None:
    """Those of padding repeat the last valid one, which a table of the context's length has."""
    made = chunk_positions(array(0, 5, 60, 7), array(4, 2, 1, 0), 4)
    assert made.tolist() == [[0, 1, 2, 3], [5, 6, 6, 6], [60, 60, 60, 60], [7, 7, 7, 7]]
    assert made.dtype == np.int64
