"""What was planned against what the GPU has in use, in a process of its own; and what is refused."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.device.cuda import CudaDevice
from llmc.runtimes.memory.plan import plan_memory

from .conftest import Engines

BATCH, CONTEXT, CHUNK = 8, 1024, 512
SCRIPT = """
import json, sys
from pathlib import Path
import numpy as np
from llmc.runtimes.engines import open_session
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request

session = open_session(Path(sys.argv[1]))
batch, context, chunk = map(int, sys.argv[2:])
used = {"open": session.device_bytes()}
session.reset(batch, context)
used["cache"] = session.device_bytes()
prompts = np.random.default_rng(0).integers(3, 49000, (batch, chunk)).tolist()
Batch.of(session, [Request(prompt, 16) for prompt in prompts]).run()
used["run"] = session.device_bytes()
print(json.dumps(used))
"""


def test_the_plan_is_what_is_used(engines: Engines, record: Callable[..., str]) -> None:
    directory = engines.directory("fp16")
    plan = plan_memory(directory, CONTEXT, BATCH, CHUNK)
    before = CudaDevice().used_bytes()
    assert before is not None
    command = [sys.executable, "-c", SCRIPT, str(directory), str(BATCH), str(CONTEXT), str(CHUNK)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    used = {name: value - before for name, value in json.loads(done.stdout.splitlines()[-1]).items()}
    cache = used["cache"] - used["open"]
    measured = record(
        planned=plan.total / 2**20,
        used=used["run"] / 2**20,
        used_open=used["open"] / 2**20,
        cache=cache / 2**20,
        beside_weights_and_cache=(used["run"] - plan.weights - plan.kv_cache) / 2**20,
    )
    assert used["open"] >= plan.weights, measured
    # Allocations are rounded up to pages of 2 MiB.
    assert 0.98 * plan.kv_cache <= cache <= 1.5 * plan.kv_cache + (64 << 20), measured
    assert used["run"] <= plan.total, measured
    assert plan.total <= 2 * used["run"], measured


def test_what_cannot_fit_is_refused_in_one_sentence(engines: Engines) -> None:
    session = engines.open("fp16").session
    device = CudaDevice()
    session.reset(1, 64)
    before = device.free_bytes()
    with pytest.raises(
        EngineError, match=r"are needed for context 8192, batch 30000.* and the GPU has .* free; use"
    ) as raised:
        session.reset(30000, 8192)
    assert "\n" not in str(raised.value)
    assert device.free_bytes() >= before
    session.reset(1, 64)
    assert np.isfinite(session.forward(np.array([[5, 6, 7]], np.int64)).host()).all()


def test_an_allocation_that_fails_says_how_much(engines: Engines) -> None:
    device = CudaDevice()
    with pytest.raises(EngineError, match=r"^976.56 GiB of GPU memory are needed and .* are free; use a shorter"):
        device.allocate(1000 * 1000 << 20)
    buffer = device.allocate(1 << 20)
    array = device.host_array((1 << 18,), np.int32)
    array[:] = 7
    device.upload(buffer, np.arange(1 << 18, dtype=np.int32))
    device.download(buffer, array)
    device.wait()
    assert array.tolist() == list(range(1 << 18))
    device.free(buffer)
