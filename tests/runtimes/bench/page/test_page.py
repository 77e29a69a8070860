"""The whole page: well-formed, alone, safe with any text, complete about what it lacks."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from llmc.runtimes.bench.page.values import Value

from ..reports import make_report
from .samples import benchmark, charts, evaluation, page, parsed, rows, section

ROOT = Path(__file__).parents[4]
HARMFUL = '</style><script src="http://x/y.js">alert(1)</script><img src=x onerror=alert(1)>"\'&\x00\x1b\u202e'


def poisoned(raw: Any) -> Any:
    """The same document with a harmful text in place of each of its own."""
    if isinstance(raw, dict):
        return {key: poisoned(it) for key, it in raw.items()} | {HARMFUL: HARMFUL}
    if isinstance(raw, list):
        return [poisoned(it) for it in raw]
    return HARMFUL + raw if isinstance(raw, str) and raw not in {"decode", "prefill"} else raw


def test_sections_in_their_order() -> None:
    tree = parsed(page(benchmark(), evaluations=(evaluation(int4=0.05, int8=0.004),)))
    anchors = [it.get("id") for it in tree.iter("section") if it.get("id")]
    assert anchors == ["measured", "throughput", "batch", "context", "latency", "ratios", "roofline", "quality"]
    links = [it.get("href") for it in tree.iter("a")]
    assert links == [f"#{anchor}" for anchor in anchors]
    assert tree.findtext("head/title") == "Benchmark of 2 engines"


def test_what_is_absent_is_said_with_what_adds_it() -> None:
    text = page(benchmark(results=[], comparisons=[]))
    (absent,) = [it for it in parsed(text).iter("ul") if it.get("class") == "absent"]
    lines = ["".join(it.itertext()) for it in absent]
    for words in (
        "--batch 1,4,16",
        "--prompt 128,512,2048",
        "--generate 16",
        "--price",
        "--curve",
        "--contexts",
        "--mode text",
        "--peer",
    ):
        assert any(words in line for line in lines), words
    assert len(lines) == len(set(lines)) >= 10
    assert not charts(parsed(text))


def test_every_chart_has_its_numbers_as_a_table() -> None:
    tree = parsed(page(benchmark(), evaluations=(evaluation(int4=0.05),)))
    figures = list(tree.iter("figure"))
    assert len(figures) == len(charts(tree)) > 15
    for figure in figures:
        assert figure.find("figcaption/strong") is not None
        assert rows(figure)
        assert figure.findtext("details/summary", "").startswith("The numbers")
        assert next(figure.iter("svg")).get("role") == "img"


def test_nothing_is_fetched_and_nothing_runs() -> None:
    text = page(benchmark(), evaluations=(evaluation(int4=0.05),))
    assert not re.search(r"https?:|//[a-z]|url\(|@import|<script|<link|<img|<iframe|\ssrc=|\son\w+=", text)
    policies = [it.get("content") for it in parsed(text).iter("meta") if it.get("http-equiv")]
    assert policies == ["default-src 'none'; style-src 'unsafe-inline'"]
    assert all((it.get("href") or "#").startswith("#") for it in parsed(text).iter())


def test_both_themes_phones_and_paper() -> None:
    style = parsed(page(benchmark())).findtext("head/style") or ""
    for words in ("prefers-color-scheme: dark", "max-width: 600px", "@media print", "color-scheme: light dark"):
        assert words in style
    assert style.count("{") == style.count("}")


@pytest.mark.parametrize("evaluated", [False, True])
def test_harmful_texts_are_texts(evaluated: bool) -> None:
    document = poisoned(benchmark())
    found = poisoned(evaluation(int4=0.05, int8=0.004)) if evaluated else {}
    text = page(document, evaluations=(found,))
    tree = parsed(text)
    plain = parsed(page(benchmark(), evaluations=(evaluation(int4=0.05, int8=0.004) if evaluated else {},)))
    # Names that long are written in a key, with bold numbers.
    assert {it.tag for it in tree.iter()} - {"b"} == {it.tag for it in plain.iter()}
    assert not [name for it in tree.iter() for name in it.attrib if name.startswith("on")]
    assert "<script" not in text
    assert not re.search("[\x00-\x08\x0b-\x1f\u202e]", text)
    text.encode("utf-8")


@pytest.mark.parametrize(
    "document",
    [
        *({}, [], None, {"results": None}, {"results": {}, "subjects": 3}, {"machine": [], "options": "x"}),
        benchmark(machine=None, bandwidth=3, options=[], warnings={}, comparisons=[None, {}, {"ratio": "x"}]),
        benchmark(subjects=[{}, {"label": 3}, {"label": "int4", "info": [], "artifact": "?", "load_s": None}]),
    ],
)
def test_any_document_is_a_page(document: Any) -> None:
    tree = parsed(page(document))
    assert tree.findtext("head/title", "").startswith("Benchmark of")


def test_damaged_figures_are_left_out() -> None:
    document = benchmark()
    keys = ("ttft_s", "decode_tokens_per_s", "itl_ms")
    for each, raw in zip(
        document["results"], ("x", None, [], {}, {"median": float("nan")}, -1, 0, {"p50": 1}), strict=True
    ):
        each.update(dict.fromkeys(keys, raw))
    tree = parsed(page(document))
    assert section(tree, "latency") is None
    assert all("Decode" not in title for title in charts(section(tree, "throughput")))
    assert any("Prefill" in title for title in charts(section(tree, "throughput")))


def test_the_benchmark_of_this_llmc() -> None:
    tree = parsed(page(json.loads(json.dumps(make_report(generate=2).to_json()))))
    shown = {it.get("id") for it in tree.iter("section")}
    assert {"throughput", "latency", "requests", "ratios", "roofline", "energy"} <= shown
    assert charts(section(tree, "energy"))


@pytest.mark.parametrize("path", sorted((ROOT / "docs" / "bench").glob("*.json")), ids=lambda path: path.stem)
def test_recorded_benchmarks_of_any_version(path: Path) -> None:
    document = json.loads(path.read_text())
    if Value(document).at("results").raw is None:
        pytest.skip("no benchmark")
    tree = parsed(page(document))
    assert charts(section(tree, "throughput"))
    assert charts(section(tree, "latency"))


def test_two_runs() -> None:
    tree = parsed(page(benchmark(), benchmark(created="2026-12-01T12:00:00+00:00")))
    assert tree.findtext("head/title") == "Benchmark of 4 engines in 2 runs"
    text = "".join(tree.itertext())
    assert "2026-11-30T12:00" in text
    assert "2026-12-01T12:00" in text
    assert "3 int4 · b" in text
