"""Several documents of ``llmc bench`` as one set of engines and figures.

In: documents by name. Out: :class:`Runs`. The same engine in two documents is two engines, told apart by the
documents' names; figures are never mixed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llmc.runtimes.bench.page.values import Spread, Value
from llmc.runtimes.charts.palette import Tone


@dataclass(frozen=True, eq=False)
class Document:
    """What was read: a name to tell it from others, and what it holds."""

    name: str
    value: Value


@dataclass(frozen=True, eq=False)
class Engine:
    """Something that was measured.

    Attributes:
        name: Its label, with the document's name where there are several.
        label, document: What makes it up; the same label in another document is another engine.
        value: Its entry among the document's subjects.
    """

    tone: Tone
    name: str
    label: str
    document: Document
    value: Value

    @property
    def title(self) -> str:
        """Number and name, as rows of charts and tables show it."""
        return f"{self.tone.number} {self.name}"


@dataclass(frozen=True, order=True)
class Case:
    """A shape of work, in the order in which cases are shown."""

    batch: int
    prompt: int
    gen: int

    @property
    def name(self) -> str:
        """In words."""
        rows = "" if self.batch == 1 else f", {self.batch} rows"
        return f"prompt {self.prompt:,}, {self.gen:,} new tokens{rows}"

    @classmethod
    def of(cls, value: Value) -> Case | None:
        """None where the document does not say what was done."""
        prompt, gen, batch = (value.at(name).positive for name in ("prompt", "gen", "batch"))
        return None if prompt is None or gen is None else cls(int(batch or 1), int(prompt), int(gen))


@dataclass(frozen=True)
class Result:
    """An engine's figures for a case."""

    engine: Engine
    case: Case
    value: Value

    def spread(self, *keys: str) -> Spread | None:
        """One of the figures."""
        return self.value.at(*keys).spread


@dataclass(frozen=True)
class Runs:
    """All documents together."""

    documents: tuple[Document, ...]
    engines: tuple[Engine, ...]

    @classmethod
    def of(cls, documents: Sequence[Document]) -> Runs:
        """Engines are numbered through all documents."""
        engines: list[Engine] = []
        for document in documents:
            for value in document.value.at("subjects"):
                label = value.at("label").text
                name = f"{label} · {document.name}" if len(documents) > 1 else label
                engines.append(Engine(Tone(len(engines) + 1), name, label, document, value))
        return cls(tuple(documents), tuple(engines))

    def engine(self, document: Document, label: str) -> Engine | None:
        """The engine of a document with this label."""
        return next((it for it in self.engines if it.label == label and it.document is document), None)

    def results(self, key: str = "results") -> list[Result]:
        """Figures of one list of the documents: of engines and cases that are known."""
        found = []
        for document in self.documents:
            for value in document.value.at(key):
                engine, case = self.engine(document, value.at("label").text), Case.of(value.at("case"))
                if engine is not None and case is not None:
                    found.append(Result(engine, case, value))
        return sorted(found, key=lambda it: (it.case, it.engine.tone.number))
