import itertools
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from llmc.runtimes.bench import rounds
from llmc.runtimes.bench.results import Subject
from llmc.runtimes.machine.bandwidth import Bandwidth
from llmc.runtimes.machine.summary import Summary

from .office import Office

FAKE_WORKER = Path(__file__).parents[1] / "fake_worker.py"


@pytest.fixture
def fake_command():
    return (sys.executable, str(FAKE_WORKER))


@pytest.fixture
def make_subject(tmp_path, fake_command):
    """``make_subject(label, **options)``: a directory with a fake engine, as a subject."""

    def make(label, **options):
        directory = tmp_path / label
        directory.mkdir()
        (directory / "fake.json").write_text(json.dumps(options))
        return Subject(label, directory, fake_command)

    return make


@pytest.fixture
def bandwidth():
    return Bandwidth(Summary(10e9, 9e9, 11e9, 5), threads=1, buffer_bytes=1 << 30, cache_bytes=1 << 20)


@pytest.fixture
def office(monkeypatch):
    """Workers come from the office; its clock is the rounds'; other processes use a tenth more in every run."""
    made = Office()
    loads = (count / 10 for count in itertools.count(1))
    meter = SimpleNamespace(start=lambda: None, stop=lambda: next(loads))
    monkeypatch.setattr(rounds, "WorkerProcess", made)
    monkeypatch.setattr(rounds, "time", SimpleNamespace(perf_counter=lambda: made.now))
    monkeypatch.setattr(rounds, "LoadMeter", lambda: meter)
    return made
