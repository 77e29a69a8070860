"""Other runtimes to measure beside llmc's engines: ``llmc bench ENGINE --peer NAME=PYTHON:SOURCE``.

In: for each peer its name, the interpreter that has it installed, and what it opens. Out: subjects of a benchmark.
llama.cpp runs a GGUF file as it is; ``FILE@TYPE`` has it make a file of another type first.

Each peer runs in its own interpreter (its packages often contradict llmc's) and speaks the workers' protocol. A
further peer is one file with a :class:`~.protocol.Target` and ``serve``, and one entry in :data:`PEERS`.

A peer whose best setting depends on the case is measured in each of its variants: a fair ratio is the one against the
better variant. llama.cpp with flash attention was a third faster in prefill and half as fast in decode at 512 tokens.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from llmc.compiler.base.errors import EngineError, UsageError
from llmc.compiler.base.user_cache import user_cache
from llmc.runtimes.bench.results import Subject
from llmc.runtimes.bench.workers.gguf_header import FILE_TYPES
from llmc.runtimes.bench.workers.remote import WorkerProcess, peer_command


@dataclass(frozen=True)
class Peer:
    """A runtime to compare with.

    Attributes:
        module: Of its worker, in this folder.
        variants: Name -> arguments of the worker; each is a subject of its own. A peer with one way to run has one
            variant without a name. Where only some fit what was prepared, its details list them as ``variants``.
        source: What it opens.
        gives_logits: Whether its worker answers ``logits``.
        quantizes: Whether its worker makes a file of another type; the type is its second argument.
    """

    module: str
    variants: Mapping[str, tuple[str, ...]]
    source: str
    gives_logits: bool = False
    quantizes: bool = False


PEERS: Mapping[str, Peer] = {
    "llamacpp-python": Peer(
        "llmc.runtimes.bench.workers.peer_llamacpp",
        {"flash attention": ("on",), "no flash attention": ("off",)},
        "a GGUF file, as it is; FILE@Q4_0: that type, made of it",
        gives_logits=True,
        quantizes=True,
    ),
    "transformers": Peer(
        "llmc.runtimes.bench.workers.peer_transformers",
        {name: (name,) for name in ("eager", "compile", "loop", "generate")},
        "a directory with config.json; without weights they are random",
        gives_logits=True,
    ),
    "genai": Peer(
        "llmc.runtimes.bench.workers.peer_genai",
        {"graph": ("cuda",), "launches": ("cuda", "launches"), "cpu": ("cpu",)},
        "a directory with genai_config.json",
        gives_logits=True,
    ),
    "openvino-genai": Peer(
        "llmc.runtimes.bench.workers.peer_openvino_genai",
        {"stateful": ("stateful",), "paged": ("paged",)},
        "a directory with openvino_model.xml",
        gives_logits=True,
    ),
    "ctranslate2": Peer(
        "llmc.runtimes.bench.workers.peer_ctranslate2",
        {"": ()},
        "a directory with model.bin, of ct2-transformers-converter",
        gives_logits=True,
    ),
    "vllm": Peer(
        "llmc.runtimes.bench.workers.peer_vllm",
        {"": ()},
        "a directory with config.json and safetensors, on a GPU",
    ),
}
"""Peer's name on the command line -> how it is run."""


CHECKED_TYPES = {"int4", "int8", "fp16", "fp32"}
"""Types whose names a converter is asked for and a worker tells of a model."""


@dataclass(frozen=True)
class PeerChoice:
    """What ``--peer NAME[/VARIANT]=PYTHON:SOURCE[@TYPE]`` says.

    Attributes:
        name: One of :data:`PEERS`.
        python: The interpreter that has it installed.
        source: What it opens.
        variant: The only one to measure; None: all.
        quantize: Type of the file that the peer is to make of ``source``; None: it opens the source itself.
    """

    name: str
    python: Path
    source: Path
    variant: str | None = None
    quantize: str | None = None

    def __post_init__(self) -> None:
        if self.name not in PEERS:
            raise UsageError(f"unknown peer {self.name!r}; known: {', '.join(PEERS)}")
        variants = PEERS[self.name].variants
        if self.variant is not None and self.variant not in variants:
            raise UsageError(f"peer {self.name} has no variant {self.variant!r}; it has: {', '.join(variants)}")

    @classmethod
    def parse(cls, text: str) -> PeerChoice:
        """Read the option's value.

        Raises:
            UsageError: it has another form, or names a peer or a variant that there is not.
        """
        subject, _, rest = text.partition("=")
        python, _, source = rest.partition(":")
        name, slash, variant = subject.partition("/")
        if name in PEERS and python and not source:
            raise UsageError(
                f"--peer {text}: add what {name} opens ({PEERS[name].source}): {subject}={python}:SOURCE"
            )
        if not (name and python and source):
            raise UsageError(f"--peer {text!r} is not NAME=PYTHON:SOURCE, as transformers=/venv/bin/python:MODEL_DIR")
        file, at, quantize = source.rpartition("@")
        if at and PEERS[name].quantizes and "/" not in quantize and not quantize.endswith(".gguf"):
            if quantize not in FILE_TYPES.values():
                raise UsageError(f"--peer {text}: {quantize} is no type of GGUF files, as Q4_0 is")
            return cls(name, Path(python), Path(file), variant if slash else None, quantize)
        return cls(name, Path(python), Path(source), variant if slash else None)


@dataclass(frozen=True)
class PreparedPeer:
    """A peer with the model that it opens.

    Attributes:
        label: The peer's name, and the type of the model's numbers where it is known.
        path: The model.
        commands: Variant's name -> what starts its worker, of the variants that fit the model; at least one.
    """

    label: str
    path: Path
    commands: Mapping[str, tuple[str, ...]]

    @property
    def subjects(self) -> list[Subject]:
        """Its variants as subjects of a benchmark; a label has the variant behind it."""
        return [
            Subject(f"{self.label}, {variant}" if variant else self.label, self.path, command)
            for variant, command in self.commands.items()
        ]


def prepared_peer(
    choice: PeerChoice,
    cache: Path | None = None,
    *,
    name: str | None = None,
    settings: tuple[str, ...] = (),
    variants: Sequence[str] | None = None,
    kind: str = "",
) -> PreparedPeer:
    """Have a peer make its model where it makes one.

    Models are kept in ``cache``; None: the user's.

    Args:
        choice: The peer, its interpreter and what it opens.
        cache: Where models are kept that the peer makes.
        name: What it is called; None: as in ``choice``.
        settings: Arguments of its worker behind a variant's.
        variants: Those that are measured where ``choice`` names none; None: all.
        kind: Type of its numbers that its model was made in; for the label, where the peer does not name one.

    Raises:
        UsageError: a file that is not there.
        EngineError: the peer's interpreter cannot run it, or the peer refused the model.
    """
    name, peer = name or choice.name, PEERS[choice.name]
    for path in (choice.python, choice.source):
        if not path.exists():
            raise UsageError(f"peer {name}: {path} does not exist")
    kept = cache or user_cache("peers")
    interpreter = choice.python.absolute()  # not resolved: a venv's python is a link
    made = (*next(iter(peer.variants.values())), *settings) if settings else ()
    if choice.quantize is not None:
        made = ("auto", choice.quantize)
    with WorkerProcess(name, peer_command(interpreter, peer.module, *made)) as worker:
        prepared = worker.request("prepare", source=str(choice.source.resolve()), cache=str(kept.resolve()))
    _require_type(name, kind, prepared["details"].get("ftype", kind))
    fitting = prepared["details"].get("variants", peer.variants)
    if variants is not None:
        fitting = [each for each in fitting if each in variants]
    if choice.variant is not None:
        fitting = (choice.variant,)
    commands = {
        variant: peer_command(interpreter, peer.module, *arguments, *settings)
        for variant, arguments in peer.variants.items()
        if variant in fitting
    }
    return PreparedPeer(f"{name} {prepared['details'].get('ftype', kind)}".strip(), Path(prepared["path"]), commands)


def peer_subjects(choice: PeerChoice, cache: Path | None = None) -> list[Subject]:
    """The variants of a peer as subjects; its model is made in ``cache`` where it makes one.

    Errors are those of :func:`prepared_peer`.
    """
    return prepared_peer(choice, cache).subjects


def _require_type(name: str, kind: str, actual: str) -> None:
    """Converters may leave numbers as they are in silence, and a speed in other numbers is another figure."""
    if kind in CHECKED_TYPES and actual in CHECKED_TYPES and kind != actual:
        raise EngineError(f"{name}: asked for {kind}, its converter made a model in {actual}")


def distinct_labels(subjects: Sequence[Subject]) -> list[Subject]:
    """The subjects; those with the same label get the name of what they open behind it."""
    labels = [subject.label for subject in subjects]
    return [
        subject
        if labels.count(subject.label) == 1
        else replace(subject, label=f"{subject.label}, {subject.path.name}")
        for subject in subjects
    ]
