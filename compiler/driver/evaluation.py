"""How much worse engines are than the model: ``llmc eval`` as a function.

In: engines' directories, peers, a reference, a text. Out: an :class:`EvaluationReport`.

    reference ─▶ tokenizer ─▶ windows of the text ─▶ logits, once, on disk ┐
    engine ──▶ logits, chunk by chunk ────────────────────────────────────┴─▶ figures
    peer's process ──▶ logits, window by window ──────────────────────────┘
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llmc.compiler.artifact.artifact import open_artifact
from llmc.compiler.artifact.manifest import MANIFEST_NAME
from llmc.compiler.base.contract import DATA, GRAPH
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.options import ExportOptions
from llmc.compiler.base.progress import NO_PROGRESS, Progress
from llmc.compiler.checkpoint.checkpoint import Checkpoint
from llmc.compiler.driver.captured_model import model_weights
from llmc.compiler.driver.opened_model import open_model
from llmc.compiler.driver.reference_model import load_model
from llmc.runtimes.bench.peers.options import NamedPeers
from llmc.runtimes.bench.workers.logits_peer import LogitsPeer, require_logits
from llmc.runtimes.bench.workers.peers import PeerChoice
from llmc.runtimes.engines import open_for_evaluation, runtime_of
from llmc.runtimes.evaluation.options import EvaluationOptions
from llmc.runtimes.evaluation.perplexity import Quality, Tokens
from llmc.runtimes.evaluation.reference_cache import GREEDY_TOKENS, ReferenceCache, default_cache
from llmc.runtimes.evaluation.reference_rows import RowsComparison
from llmc.runtimes.evaluation.report import EvaluatedRow, EvaluationReport, ReferenceFacts, TextFacts
from llmc.runtimes.evaluation.scored_rows import (
    LogitsSource,
    ScoredRows,
    equal_greedy_tokens,
    require_finite,
    session_source,
)
from llmc.runtimes.evaluation.text_windows import leading_token, text_windows
from llmc.runtimes.evaluation.texts import evaluation_text, read_texts
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.session.engine import Session


@dataclass(frozen=True)
class Reference:
    """What counts as right.

    Attributes:
        name: As a report calls it.
        runtime: What computes it.
        identity: The hashes of its files, as JSON.
        tokenizer: Its own.
        open: A session of it; its errors are LlmcErrors.
    """

    name: str
    runtime: str
    identity: dict[str, Any]
    tokenizer: TextTokenizer
    open: Callable[[], Session]


@dataclass(frozen=True)
class Candidate:
    """What is evaluated, open.

    Attributes:
        runtime, precision, where, bytes: For the report; see :class:`EvaluatedRow`.
        vocabulary: Size of its vocabulary.
        source: Its logits.
    """

    runtime: str
    precision: str
    where: str
    bytes: int
    vocabulary: int
    source: LogitsSource


def evaluate(
    engines: Sequence[tuple[str, Path]],
    peers: Sequence[LogitsPeer],
    model: str,
    options: EvaluationOptions,
    reading: ExportOptions,
    *,
    progress: Progress,
) -> EvaluationReport:
    """Compare engines and peers with a reference on a text.

    Args:
        engines: Label and directory of each.
        peers: Other programs' rows.
        model: The reference: a checkpoint, or the directory of a float32 engine that was verified.
        options: Text, windows, cache.
        reading: How a checkpoint is read.
        progress: Told how far it is.

    Raises:
        UsageError: another vocabulary, a text that is too short, or a reference that is none.
        LlmcError: as reading, opening and running them does.
    """
    texts = (evaluation_text(),) if options.text is None else read_texts(options.text)
    progress.start("Reading the reference")
    reference = open_reference(model, reading, options.threads, progress)
    windows = text_windows(reference.tokenizer, texts, options.window, tokens=options.tokens)
    for _, directory in engines:
        _require_tokenizer(directory, reference, texts)
    cache = ReferenceCache(options.cache or default_cache(), reference.identity, windows)
    cache.complete(reference.open, progress)
    rows = []
    for label, directory in engines:
        with _engine(directory, options.threads) as candidate:
            rows.append(_evaluated(label, directory, candidate, cache, progress))
    for peer in peers:
        with _peer(peer, options.threads) as candidate:
            rows.append(_evaluated(peer.label, peer.path, candidate, cache, progress))
    # The reference's own perplexity is part of every comparison.
    perplexity = rows[0].quality.reference_perplexity
    if perplexity is None:
        raise UsageError("no positions were scored: the text is too short")
    name = "the evaluation text of llmc" if options.text is None else str(options.text)
    bos = leading_token(reference.tokenizer)
    facts = TextFacts(name, options.window, len(windows), rows[0].quality.positions, cache.first, bos)
    return EvaluationReport(facts, ReferenceFacts(reference.name, reference.runtime, perplexity), tuple(rows))


def logits_peers(
    choices: Sequence[str],
    named: NamedPeers | None = None,
    locate: Callable[[str], Path] = Path,
    progress: Progress = NO_PROGRESS,
) -> list[LogitsPeer]:
    """What ``--peer`` names, each in the order given; those by name convert ``named``'s checkpoint.

    Args:
        choices: As ``NAME=PYTHON:SOURCE`` or ``NAME[@TYPE]``.
        named: Where peers by name are, and what they convert; None: where they are by default, nothing.
        locate: Finds the checkpoint.
        progress: Told how far it is.

    Raises:
        UsageError: a peer that does not exist, whose interpreter or model does not, or that gives no logits.
        MissingDependencyError: peers by name that are not installed.
        EngineError: a peer or its converter refused its model.
    """
    from llmc.runtimes.bench.peers.named import NamedChoice, named_peers

    by_name = {text: choice for text in choices if (choice := NamedChoice.parse(text))}
    for choice in by_name.values():
        require_logits(choice.environment.peer, choice.environment.name)
    prepared = named_peers(list(by_name.values()), named or NamedPeers(), locate, progress)
    found = dict(zip(by_name, map(LogitsPeer.of_prepared, prepared), strict=True))
    return [found[text] if text in found else LogitsPeer.of(PeerChoice.parse(text)) for text in choices]


def open_reference(
    model: str, reading: ExportOptions, threads: int | None, progress: Progress = NO_PROGRESS
) -> Reference:
    """The reference that ``model`` names; its weights are not read yet, but for their hash.

    Raises:
        UsageError: an engine's directory that is no reference, or a model without a tokenizer.
        LlmcError: as the checkpoint or the artifact cannot be read.
    """
    if (Path(model) / MANIFEST_NAME).is_file():
        if reading.revision is not None:
            raise UsageError(f"--revision {reading.revision} is for models of the hub, and {model} is an artifact")
        if reading.adapters:
            raise UsageError(f"--adapter is for models, and {model} is an artifact, whose weights are as they are")
        return _engine_reference(Path(model), threads)
    checkpoint = open_model(model, reading, progress)
    with checkpoint.content_hashes() as hashes, tempfile.TemporaryDirectory() as folder:
        checkpoint.write_assets(Path(folder))
        tokenizer = _tokenizer(Path(folder), model)
        identity = {"transformers": hashes.result()}  # in the block, whose end ends the hashing
    return Reference(
        checkpoint.name,
        "transformers, eager, float32",
        identity,
        tokenizer,
        lambda: _transformers(checkpoint, threads),
    )


def _engine_reference(directory: Path, threads: int | None) -> Reference:
    manifest = open_artifact(directory).manifest
    if manifest.precision != "fp32" or manifest.contract.rounded_to is not None:
        kind = manifest.contract.rounded_to or manifest.precision
        raise UsageError(
            f"{directory} is no reference: its weights are {kind}; name the model, or an engine in float32"
        )
    if not manifest.measured:
        raise UsageError(
            f"{directory} is no reference: it was never compared with its model; compile it with --verify on"
        )
    hashes = {name: record.sha256 for name, record in manifest.files.items() if name.startswith((GRAPH, "engine"))}
    return Reference(
        directory.resolve().name,
        runtime_of(manifest),
        {"engine": hashes},
        _tokenizer(directory, str(directory)),
        lambda: open_for_evaluation(directory, threads=threads)[0],
    )


def _transformers(checkpoint: Checkpoint, threads: int | None) -> Session:
    from llmc.runtimes.reference.session import TransformersSession

    return TransformersSession(load_model(checkpoint, model_weights(checkpoint)), threads=threads)


def _tokenizer(directory: Path, name: str) -> TextTokenizer:
    if not (directory / "tokenizer.json").is_file():
        raise UsageError(f"{name} has no tokenizer, so there is no text to evaluate on; name a model that has one")
    return TextTokenizer.from_directory(directory)


def _require_tokenizer(directory: Path, reference: Reference, texts: Sequence[str]) -> None:
    """Refuse an engine that was made of another model: found before anything is computed."""
    open_artifact(directory)
    if not (directory / "tokenizer.json").is_file():
        return
    own = TextTokenizer.from_directory(directory)
    if any(own.encode(text) != reference.tokenizer.encode(text) for text in texts):
        raise UsageError(
            f"{directory} has another vocabulary than {reference.name}: it makes other tokens of the text; compare "
            "an engine with the model that it was compiled from"
        )


@contextmanager
def _engine(directory: Path, threads: int | None) -> Iterator[Candidate]:
    manifest = open_artifact(directory).manifest
    session, where = open_for_evaluation(directory, threads=threads)
    try:
        info = session.info
        data = directory / DATA
        size = data.stat().st_size if data.is_file() else sum(record.bytes for record in manifest.files.values())
        yield Candidate(info.runtime, info.precision, where, size, info.vocab_size, session_source(session))
    finally:
        session.close()


@contextmanager
def _peer(peer: LogitsPeer, threads: int | None) -> Iterator[Candidate]:
    with peer.opened(threads) as (info, logits):

        def source(windows: Tokens, first: int) -> Iterator[ScoredRows]:
            for index, window in enumerate(windows):
                yield ScoredRows(index, 0, logits(window, first))

        yield Candidate(info["runtime"], info["precision"], "", peer.bytes, int(info["vocab_size"]), source)


def _evaluated(
    label: str, path: Path, candidate: Candidate, cache: ReferenceCache, progress: Progress
) -> EvaluatedRow:
    vocabulary = cache.rows(0).levels.shape[1]
    if candidate.vocabulary != vocabulary:
        raise UsageError(
            f"{label} has a vocabulary of {candidate.vocabulary} tokens, the reference one of {vocabulary}: they are "
            "not the same model"
        )
    quality = _compare(label, candidate.source, cache, progress)
    equal = equal_greedy_tokens(candidate.source, cache.prompts, cache.continuations(), f"{label}'s")
    return EvaluatedRow(
        label,
        str(path),
        candidate.runtime,
        candidate.precision,
        candidate.where,
        candidate.bytes,
        quality,
        tuple(equal),
        GREEDY_TOKENS,
    )


def _compare(label: str, source: LogitsSource, cache: ReferenceCache, progress: Progress) -> Quality:
    comparison = RowsComparison()
    each = cache.windows.shape[1] - 1 - cache.first
    done = 0
    progress.start(f"Evaluating {label}", total=len(cache.windows), unit="windows")
    for rows in source(cache.windows, cache.first):
        require_finite(rows, cache.first, f"{label}'s", f"window {rows.window + 1}")
        comparison.update(cache.rows(rows.window)[rows.start : rows.start + len(rows.logits)], rows.logits)
        done += len(rows.logits)
        progress.advance(done // each)
    return comparison.result()
