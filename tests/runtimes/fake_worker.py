"""A worker whose engine is a fake: ``python fake_worker.py``; what it does stands in DIRECTORY/fake.json."""

import json
import os
import threading
import time

import numpy as np

from llmc.compiler.base.errors import EngineError
from llmc.runtimes.bench.workers.protocol import serve
from llmc.runtimes.bench.workers.worker import SessionTarget
from llmc.runtimes.session.engine import EngineInfo

DEFAULTS = {
    "prefill_ms": 1.0,
    "step_ms": 1.0,
    "megabytes": 0,
    "vocab": 32,
    "logits": "last",
    "fail": "",
    "spin": False,
    "busy": False,
    "chatter": False,
    "max_context": 4096,
    "profiles": [],
    "noise": 0.0,
    "shift": 1,
}


class FakeLogits:
    def __init__(self, values):
        self._values = values

    def host(self):
        return self._values

    def argmax(self):
        return self._values[:, -1].argmax(axis=1)


class FakeSession:
    """Thinks that token t is followed by t + shift: logits 8 for that one, 0 for the others, plus seeded noise."""

    rows = chooser = None

    def __init__(self, threads=None, **options):
        self.options = DEFAULTS | options
        self.calls = []
        self._rows = np.zeros(0, np.int64)
        vocab = self.options["vocab"]
        noise = np.random.default_rng(7).standard_normal((vocab, vocab)) * self.options["noise"]
        follower = np.roll(np.eye(vocab), self.options["shift"], axis=1)
        self._table = (8 * follower + noise).astype(np.float32)
        self.info = EngineInfo(
            runtime="fake",
            vocab_size=vocab,
            num_layers=2,
            max_context=self.options["max_context"],
            logits=self.options["logits"],
            cache="shared",
            cache_bytes_per_token=1000,
            weight_bytes=1_000_000,
            precision="int4",
            threads=threads or 1,
            profiles=tuple(tuple(each) for each in self.options["profiles"]),
            details={"note": "1"},
        )

    @property
    def lengths(self):
        return self._rows

    def reset(self, batch, capacity):
        self.calls.append(("reset", batch, capacity))
        self._rows = np.zeros(batch, np.int64)
        self._capacity = capacity
        self._memory = np.ones(self.options["megabytes"] << 20, np.uint8)

    def forward(self, input_ids, lengths=None):
        self.calls.append(("forward", *input_ids.shape))
        self._misbehave()
        self._rows = self._rows + input_ids.shape[1]
        if self._rows.max() > self._capacity:
            raise EngineError(f"row of {self._rows.max()} tokens in a cache of {self._capacity}")
        chunk = input_ids.shape[1]
        self._work(self.options["step_ms" if chunk == 1 else "prefill_ms"] / 1e3)
        values = self._table[input_ids]
        return FakeLogits(values if self.options["logits"] == "all" else values[:, -1:])

    def device_bytes(self):
        return None

    def _work(self, seconds):
        if self.options["busy"]:
            end = time.perf_counter() + seconds
            while time.perf_counter() < end:
                pass
        else:
            time.sleep(seconds)

    def _misbehave(self):
        if self.options["fail"] == "exit":
            os._exit(3)
        if self.options["fail"] == "engine":
            raise EngineError("the fake engine refuses")
        if self.options["fail"] == "bug":
            raise ZeroDivisionError("a bug")

    def close(self):
        self.calls.append(("close",))


def _spin():
    while True:
        pass


def open_fake(directory, threads):
    options = json.loads((directory / "fake.json").read_text())
    if options.get("chatter"):
        os.write(1, b"a native library says hello\n")
    if options.get("spin"):
        threading.Thread(target=_spin, daemon=True).start()
    return FakeSession(threads, **options)


if __name__ == "__main__":
    serve(SessionTarget(open_fake))
