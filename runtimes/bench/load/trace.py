"""Recorded traffic: when requests came, and how long they were.

In: JSON lines (or a table of commas with a head), a request each, with the keys of any of these::

    {"timestamp": 27482, "input_length": 6955, "output_length": 52, "hash_ids": [46, 47, …]}   Mooncake; milliseconds
    {"Timestamp": 5, "Request tokens": 472, "Response tokens": 18}                             BurstGPT; seconds
    {"arrival_s": 5.0, "prompt": "text", "output_length": 18}                                  seconds; or "messages"

Out: :class:`Trace`, whose first request comes at 0. Equal ``hash_ids`` stand for equal blocks of 512 tokens, so that
prompts share beginnings as they did when they were recorded.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.input_file import read_input
from llmc.runtimes.bench.prompts import Prompt

BLOCK = 512
"""Tokens that one hash of a Mooncake trace stands for."""
_ARRIVALS = {"timestamp": 1e-3, "arrival_s": 1.0, "Timestamp": 1.0}
_INPUTS = ("input_length", "input_tokens", "Request tokens")
_OUTPUTS = ("output_length", "output_tokens", "Response tokens")


@dataclass(frozen=True)
class TraceEntry:
    """One recorded request.

    Attributes:
        arrival_s: Seconds since the first one.
        input_length: Tokens of the prompt; 0 where ``prompt`` is there.
        output_length: Tokens of the answer.
        hash_ids: Names of the prompt's blocks.
        prompt: A text or messages; None: any tokens will do.
    """

    arrival_s: float
    input_length: int
    output_length: int
    hash_ids: tuple[int, ...] = ()
    prompt: Prompt | None = None


@dataclass(frozen=True)
class Trace:
    """Requests in the order of their arrival.

    Attributes:
        file: Its name.
        sha256: Hash of its content.
    """

    file: str
    sha256: str
    entries: tuple[TraceEntry, ...]


def read_trace(path: Path, speed: float = 1.0) -> Trace:
    """Read a trace; empty lines are none, and so is a request without an answer (BurstGPT has failed ones).

    Args:
        path: JSON lines, or ``.csv``.
        speed: How much faster than it was recorded it is played.

    Raises:
        UsageError: it cannot be read, a line is no request, or there is none.
    """
    try:
        content = read_input(path)
        lines = content.decode("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--trace {path} cannot be read as text: {error}") from error
    rows = csv.DictReader(lines) if path.suffix == ".csv" else (line for line in lines if line.strip())
    entries = [entry for number, row in enumerate(rows, 1) if (entry := _entry(row, f"{path}, request {number}"))]
    if not entries:
        raise UsageError(f"--trace {path} holds no request; write a line of JSON for each")
    first = min(entry.arrival_s for entry in entries)
    ordered = sorted(entries, key=lambda entry: entry.arrival_s)
    moved = (_at(entry, round((entry.arrival_s - first) / speed, 6)) for entry in ordered)
    return Trace(path.name, hashlib.sha256(content).hexdigest(), tuple(moved))


def _at(entry: TraceEntry, moment: float) -> TraceEntry:
    return TraceEntry(moment, entry.input_length, entry.output_length, entry.hash_ids, entry.prompt)


def _entry(row: Any, where: str) -> TraceEntry | None:
    try:
        value = json.loads(row) if isinstance(row, str) else row
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{where} is not JSON ({error})") from error
    if not isinstance(value, Mapping):
        raise UsageError(f'{where} is no object; write {{"timestamp": 0, "input_length": 128, "output_length": 64}}')
    key = next((key for key in _ARRIVALS if key in value), None)
    if key is None:
        raise UsageError(f"{where} does not say when it came; add timestamp (milliseconds) or arrival_s (seconds)")
    arrival = _number(value, (key,), where) * _ARRIVALS[key]
    output = int(_number(value, _OUTPUTS, where))
    prompt = value.get("messages") or value.get("prompt")
    if prompt is not None and not isinstance(prompt, str | list):
        raise UsageError(f"{where}: its prompt is neither a text nor a list of messages")
    if output == 0:
        return None
    if prompt:
        return TraceEntry(arrival, 0, output, prompt=prompt)
    length, hashes = int(_number(value, _INPUTS, where)), value.get("hash_ids") or ()
    if length < 1:
        raise UsageError(f"{where} has a prompt of {length} tokens; it must have at least 1")
    if not isinstance(hashes, list | tuple) or not all(type(it) is int and it >= 0 for it in hashes):
        raise UsageError(f"{where}: hash_ids are no list of whole numbers")
    return TraceEntry(arrival, length, output, tuple(hashes))


def _number(value: Mapping[str, Any], keys: tuple[str, ...], where: str) -> float:
    """The first of these keys that is there, a finite number that is not below 0."""
    key = next((key for key in keys if value.get(key) is not None), None)
    if key is None:
        raise UsageError(f"{where} has none of {', '.join(keys)}")
    try:
        number = float(value[key])
    except (TypeError, ValueError):
        number = math.nan
    if not 0 <= number < 1e15:
        raise UsageError(f"{where}: {key} is {value[key]!r}, which is no number from 0")
    return number
