"""What ONNX Runtime's profiler wrote, as times of operators.

In: its file, events of Chrome's trace format in microseconds. Out: a :class:`RunTime` for each run of the graph.
A node's event stands inside of the run's, which is called ``model_run``.
"""

from __future__ import annotations

import bisect
import json
from collections import Counter
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.session.operator_times import RunTime

RUN, NODE_ENDING = "model_run", "_kernel_time"


def read_profile(path: Path) -> list[RunTime]:
    """The runs in a profiler's file, in their order.

    Raises:
        EngineError: the file cannot be read, or has no run.
    """
    try:
        events = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EngineError(f"ONNX Runtime's profile {path.name} cannot be read: {error}") from error
    return run_times(events)


def run_times(events: list[dict[str, Any]]) -> list[RunTime]:
    """The same of events.

    Raises:
        EngineError: there is no run among them.
    """
    runs = sorted((event for event in events if event.get("name") == RUN), key=lambda event: event["ts"])
    if not runs:
        raise EngineError("ONNX Runtime's profile has no run of the graph")
    begins = [run["ts"] for run in runs]
    seconds: list[Counter[str]] = [Counter() for _ in runs]
    calls: list[Counter[str]] = [Counter() for _ in runs]
    for event in events:
        place = bisect.bisect_right(begins, event.get("ts", -1)) - 1
        operator = event.get("args", {}).get("op_name")
        if operator is None or not event["name"].endswith(NODE_ENDING) or place < 0:
            continue
        seconds[place][operator] += event["dur"]
        calls[place][operator] += 1
    return [
        RunTime(run["dur"] / 1e6, {name: spent / 1e6 for name, spent in each.items()}, dict(count))
        for run, each, count in zip(runs, seconds, calls, strict=True)
    ]
