"""An engine in this process as the target of a load.

In: an engine's directory, how many requests it runs at a time. Out: :class:`EngineTarget`. It is measured from token
ids to token ids: a server adds HTTP, tokenization and detokenization.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.base.errors import UsageError
from llmc.runtimes.bench.artifact_facts import artifact_facts
from llmc.runtimes.bench.load.course import Course
from llmc.runtimes.bench.load.engine_loop import EngineLoop
from llmc.runtimes.bench.load.options import LoadOptions
from llmc.runtimes.bench.load.target import Traffic, Watch
from llmc.runtimes.bench.load.workload import Work, Workload, random_ids
from llmc.runtimes.bench.results import SubjectRecord
from llmc.runtimes.bench.workers.protocol import memory_status
from llmc.runtimes.engines import open_session
from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.machine.summary import Summary
from llmc.runtimes.session.engine import Session
from llmc.runtimes.session.sampling_params import SamplingParams

DEFAULT_ROWS = 8


@dataclass(eq=False)
class EngineTarget:
    """An engine that is open while it is measured.

    Attributes:
        directory, label: Which one, and what it is called.
        threads: That it computes with; None: as its manifest says.
        rows: Requests at a time; fewer where the engine was built for fewer.
        prefill_chunk: Most tokens of a prompt in a step; None: all of them.
    """

    directory: Path
    label: str
    threads: int | None = None
    rows: int | None = DEFAULT_ROWS
    prefill_chunk: int | None = None
    joins: bool | None = None
    _session: Session | None = None
    _subject: SubjectRecord | None = None
    _capacity: int = 0
    _options: LoadOptions = field(default_factory=LoadOptions)
    _eos_ids: frozenset[int] = frozenset()
    _encoded: dict[str, list[int]] = field(default_factory=dict)
    _tokenizer: TextTokenizer | None = None

    def subject(self) -> SubjectRecord:
        """What was opened."""
        if self._subject is None:
            raise UsageError(f"{self.label} is not open")
        return self._subject

    def check(self) -> None:
        """Read the manifest."""
        open_artifact(self.directory)

    def open(self, options: LoadOptions, workload: Workload, works: Sequence[Work]) -> tuple[str, ...]:
        """Load the engine, and let it answer one request."""
        base, begin = memory_status()["rss_bytes"], time.perf_counter()
        session = self._session = open_session(self.directory, threads=self.threads)
        load_s, info = time.perf_counter() - begin, session.info
        self._options = options
        facts = artifact_facts(self.directory)
        self._subject = SubjectRecord(
            self.label, str(self.directory), asdict(info), Summary.of([load_s]), base, artifact=facts
        )
        if not options.ignore_eos or any(not work.pieces for work in works):
            self._tokenizer = TextTokenizer.from_directory(self.directory)
        if not options.ignore_eos and self._tokenizer is not None:
            self._eos_ids = frozenset(self._tokenizer.eos_ids)
        wanted = self.rows or DEFAULT_ROWS
        self.rows = min(wanted, info.max_batch or wanted)
        self.joins = session.rows is not None
        self._capacity = max(map(self._room, works))
        if self._capacity > info.max_context:
            raise UsageError(
                f"prompts and answers of up to {self._capacity} tokens exceed the engine's context of "
                f"{info.max_context}; ask for shorter ones, or compile with a larger --context"
            )
        first = workload(0, 0)
        self._answer(Request(self.prepare(first), min(8, first.output)))
        if self.joins:
            return ()
        return (f"{self.label} cannot edit rows: requests wait until all {self.rows} before them are finished",)

    def _room(self, work: Work) -> int:
        """Tokens of a request with its answer."""
        length = sum(piece.length for piece in work.pieces) if work.pieces else len(self.prepare(work))
        return length + work.output

    def _answer(self, request: Request) -> None:
        """One request alone: kernels are chosen, buffers are made."""
        batch = self._batch()
        batch.add(request)
        batch.run()
        batch.close()

    def _batch(self) -> Batch:
        if self._session is None or self.rows is None:
            raise UsageError(f"{self.label} is not open")
        return Batch(self._session, self.rows, self._capacity, prefill_chunk=self.prefill_chunk)

    def prepare(self, work: Work) -> list[int]:
        """Token ids of a prompt; a text's are kept, since it may come again."""
        if work.pieces:
            return random_ids(work.pieces, 0 if self._session is None else self._session.info.vocab_size)
        if self._tokenizer is None:
            raise UsageError(f"{self.label} is not open")
        name = json.dumps(work.prompt)
        if name not in self._encoded:
            encode = self._tokenizer.encode if isinstance(work.prompt, str) else self._tokenizer.encode_chat
            self._encoded[name] = encode(work.prompt)  # type: ignore[arg-type]
        return self._encoded[name]

    def run(self, course: Course[Sequence[int]], watch: Watch) -> Traffic:
        """Serve a course in a fresh batch."""
        batch, options = self._batch(), self._options
        sampling = SamplingParams(options.temperature, seed=options.seed)
        try:
            return EngineLoop(batch, sampling, self._eos_ids, options.timeout).run(course, watch)
        finally:
            batch.close()

    def close(self) -> None:
        """Free the engine."""
        if self._session is not None:
            self._session.close()
            self._session = None
