"""Who ``llmc load`` asks: an engine in this process, or a server.

In: an engine's directory or a URL, and options. Out: :class:`~llmc.runtimes.bench.load.target.LoadTarget` s.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.option_field import option, require_accepted
from llmc.compiler.base.options import MOST_THREADS

if TYPE_CHECKING:
    from llmc.runtimes.bench.gate.run import RecordedBaseline
    from llmc.runtimes.bench.load.gate_options import LoadGateOptions
    from llmc.runtimes.bench.load.options import LoadOptions
    from llmc.runtimes.bench.load.target import LoadTarget

MOST_ROWS = 4096
"""Beyond which no engine's cache goes."""


@dataclass(frozen=True)
class Target:
    """An engine's options, and a server's."""

    PANEL: ClassVar = "Who is asked"
    url: str | None = option(
        None, "A server with OpenAI's interface, as http://127.0.0.1:8000/v1, instead of engines.", metavar="URL"
    )
    model: str = option("", "The server's name of the model. Default: the only one that it has.", metavar="NAME")
    api: Literal["auto", "completions", "chat"] = option(
        "auto", "Which of the server's interfaces; auto: chat for prompts that are messages."
    )
    tokenizer: Path | None = option(
        None,
        "A directory with the server's tokenizer.json, as an engine of the same model has it: prompts then have as "
        "many tokens as they are to have, and answers are counted where the server does not.",
        metavar="DIR",
    )
    body: str = option("{}", "Further fields of each request, a JSON object.", metavar="JSON")
    key_from: str | None = option(
        None, "Environment variable that holds the server's API key.", "--key-from", metavar="VARIABLE"
    )
    rows: int = option(
        8, "Requests that an engine in this process runs at a time; others wait.", least=1, most=MOST_ROWS
    )
    prefill_chunk: int | None = option(
        None, "Most tokens of a prompt in a step of an engine. Default: all of them.", metavar="N", least=1
    )
    threads: int | None = option(None, "Threads of an engine. Default: its own.", least=1, most=MOST_THREADS)

    def __post_init__(self) -> None:
        require_accepted(self)
        if self.url is None and (self.model or self.tokenizer or self.key_from or self.api != "auto"):
            raise UsageError("--model, --api, --tokenizer and --key-from are for a server; name it with --url")

    def targets(self, directories: Sequence[Path], labels: Sequence[str]) -> list[LoadTarget]:
        """The engines, or the server.

        Raises:
            UsageError: neither or both, or something of the server makes no sense.
            ArtifactError: no tokenizer where one is named.
        """
        if bool(directories) == (self.url is not None):
            raise UsageError("load: name an engine's directory, or a server with --url URL; one of them")
        if self.url is not None:
            return [self.server(self.url)]
        return [self.engine(path, label) for path, label in zip(directories, labels, strict=True)]

    def engine(self, directory: Path, label: str) -> LoadTarget:
        """An engine in this process."""
        from llmc.runtimes.bench.load.engine_target import EngineTarget

        return EngineTarget(directory.resolve(), label, self.threads, self.rows, self.prefill_chunk)

    def server(self, url: str, label: str | None = None) -> LoadTarget:
        """A server; its label is its address unless told otherwise."""
        from llmc.runtimes.bench.load.server_target import ServerTarget
        from llmc.runtimes.generation.text import TextTokenizer

        tokenizer = None if self.tokenizer is None else TextTokenizer.from_directory(self.tokenizer)
        api = None if self.api == "auto" else self.api
        return ServerTarget(url, label or url, self.model, api, tokenizer, self._key(), self._fields())

    def baseline(self, gate: LoadGateOptions, options: LoadOptions) -> LoadTarget | RecordedBaseline | None:
        """What a gate compares with: a server, an engine, an earlier run, or nothing.

        Raises:
            UsageError: it is none of these, or not comparable.
        """
        from llmc.runtimes.bench.load.gate import read_load_baseline

        named = gate.baseline
        if named is None:
            return None
        if named.startswith(("http://", "https://")):
            return self.server(named, f"{named}, baseline")
        path = Path(named)
        if path.is_dir():
            return self.engine(path, f"{path.resolve().name}, baseline")
        return read_load_baseline(path, options, anyway=gate.baseline_anyway)

    def _key(self) -> str:
        if self.key_from is None:
            return ""
        key = os.environ.get(self.key_from, "")
        if not key or not key.isascii() or not key.isprintable():
            raise UsageError(f"--key-from {self.key_from}: that environment variable holds no key")
        return key

    def _fields(self) -> dict[str, Any]:
        try:
            fields = json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise UsageError(f"--body is not JSON ({error})") from error
        if not isinstance(fields, dict):
            raise UsageError("--body is no JSON object; write it as '{\"top_k\": 1}'")
        return fields
