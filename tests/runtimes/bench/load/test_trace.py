import hashlib
import json
from pathlib import Path

import pytest

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.load.trace import TraceEntry, read_trace


def entries(folder: Path, *lines: str, name: str = "t.jsonl", speed: float = 1.0) -> tuple[TraceEntry, ...]:
    (folder / name).write_text("\n".join(lines))
    return read_trace(folder / name, speed).entries


def test_mooncakes_traces_are_milliseconds_and_begin_at_zero(tmp_path: Path) -> None:
    found = entries(
        tmp_path,
        '{"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47]}',
        "",
        '{"timestamp": 30535, "input_length": 6, "output_length": 3}',
    )
    assert found == (TraceEntry(0.0, 6955, 52, (46, 47)), TraceEntry(3.053, 6, 3))


def test_burstgpts_are_seconds_in_a_table_too_and_failed_requests_are_left_out(tmp_path: Path) -> None:
    lines = '{"Timestamp": 5, "Request tokens": 472, "Response tokens": 18}'
    assert entries(tmp_path, lines) == (TraceEntry(0.0, 472, 18),)
    head = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
    table = (head, "5,ChatGPT,472,18,490,x", "45,ChatGPT,1,0,1,x", "45.5,GPT-4,7,230,237,x")
    assert entries(tmp_path, *table, name="t.csv") == (TraceEntry(0.0, 472, 18), TraceEntry(40.5, 7, 230))


def test_prompts_are_kept_and_requests_are_put_in_order(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hello"}]
    found = entries(
        tmp_path,
        '{"arrival_s": 9.5, "prompt": "text", "output_length": 18}',
        '{"arrival_s": 1.5, "messages": [{"role": "user", "content": "hello"}], "output_tokens": 2}',
    )
    assert found == (TraceEntry(0.0, 0, 2, prompt=chat), TraceEntry(8.0, 0, 18, prompt="text"))


def test_a_trace_is_played_faster(tmp_path: Path) -> None:
    lines = [json.dumps({"arrival_s": at, "input_length": 1, "output_length": 1}) for at in (10, 14)]
    assert [it.arrival_s for it in entries(tmp_path, *lines, speed=2.0)] == [0.0, 2.0]


def test_the_file_is_named_with_its_hash(tmp_path: Path) -> None:
    entries(tmp_path, '{"timestamp": 0, "input_length": 1, "output_length": 1}')
    trace = read_trace(tmp_path / "t.jsonl")
    assert trace.file == "t.jsonl"
    assert trace.sha256 == hashlib.sha256((tmp_path / "t.jsonl").read_bytes()).hexdigest()


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[1]", "no object"),
        ('{"input_length": 1, "output_length": 1}', "when it came"),
        ('{"timestamp": 1, "input_length": 1}', "output_length"),
        ('{"timestamp": 1, "output_length": 1}', "input_length"),
        ('{"timestamp": 1, "input_length": 0, "output_length": 1}', "at least 1"),
        ('{"timestamp": "soon", "input_length": 1, "output_length": 1}', "no number"),
        ('{"timestamp": -1, "input_length": 1, "output_length": 1}', "no number"),
        ('{"timestamp": NaN, "input_length": 1, "output_length": 1}', "no number"),
        ('{"timestamp": 1, "input_length": 1, "output_length": 1, "hash_ids": ["a"]}', "hash_ids"),
        ('{"timestamp": 1, "prompt": 5, "output_length": 1}', "neither"),
        ("", "no request"),
    ],
)
def test_what_is_no_request_is_named(tmp_path: Path, line: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        entries(tmp_path, line)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"none\.jsonl"):
        read_trace(tmp_path / "none.jsonl")
