"""Which figures belong to which engine."""

from __future__ import annotations

from llmc.runtimes.bench.page.runs import Case, Document, Runs
from llmc.runtimes.bench.page.values import Value

from .samples import CASES, benchmark


def runs(*documents: object) -> Runs:
    return Runs.of([Document(name, Value(it)) for name, it in zip("ab", documents, strict=False)])


def test_one_document() -> None:
    one = runs(benchmark())
    assert [(it.tone.number, it.name, it.title) for it in one.engines] == [
        (1, "int4", "1 int4"),
        (2, "int8", "2 int8"),
    ]
    results = one.results()
    assert len(results) == 8
    assert results[0].case == Case(1, 128, 64)
    assert results[0].spread("decode_tokens_per_s").median == 220  # type: ignore[union-attr]


def test_the_same_engine_in_two_documents_is_two() -> None:
    first, second = benchmark(), benchmark()
    second["results"] = second["results"][:1]
    both = runs(first, second)
    assert [it.name for it in both.engines] == ["int4 · a", "int8 · a", "int4 · b", "int8 · b"]
    assert [sum(it.engine is engine for it in both.results()) for engine in both.engines] == [4, 4, 1, 0]


def test_what_cannot_be_placed_is_left_out() -> None:
    document = benchmark()
    document["results"] = [
        *(
            {"label": "nobody", "case": CASES[0]},
            {"label": "int4"},
            {"label": "int4", "case": {"prompt": 0, "gen": 1}},
        ),
        *(None, 3, {"label": "int4", "case": {"prompt": 5, "gen": 6}}),
    ]
    assert [it.case for it in runs(document).results()] == [Case(1, 5, 6)]
    assert runs({}).results() == []
    assert runs([]).engines == ()


def test_cases_in_words() -> None:
    assert Case(1, 128, 64).name == "prompt 128, 64 new tokens"
    assert Case(4, 4096, 64).name == "prompt 4,096, 64 new tokens, 4 rows"
