"""Documents with made-up figures, each of them another number."""

from __future__ import annotations

from typing import Any
from xml.etree import ElementTree

from llmc.runtimes.bench.page.page import render_page
from llmc.runtimes.bench.page.runs import Document
from llmc.runtimes.bench.page.values import Value

LABELS = ("int4", "int8")
CASES = tuple({"prompt": prompt, "gen": 64, "batch": batch} for batch in (1, 4) for prompt in (128, 512))


def spread(median: float) -> dict[str, float]:
    """A summary around a median."""
    return {"median": median, "minimum": median * 0.9, "maximum": median * 1.2, "count": 3}


def result(place: int, label: str, case: dict[str, int]) -> dict[str, Any]:
    """Figures of an engine for a case; ``place`` makes them another's."""
    step = 4.0 + place
    return {
        "label": label,
        "case": case,
        "ttft_s": spread(0.05 * (place + 1)),
        "prefill_tokens_per_s": spread(3000.0 - 200 * place),
        "decode_tokens_per_s": spread(220.0 - 11 * place),
        "itl_ms": {"p50": step, "p90": step * 1.1, "p95": step * 1.2, "p99": step * 1.5, "count": 99},
        "bandwidth_share": 0.5 + place / 100,
    }


def benchmark(**changes: Any) -> dict[str, Any]:
    """A document with two engines and four cases, and what a plain run has."""
    pairs = [(label, case) for case in CASES for label in LABELS]
    interval = {"low": 1.05, "high": 1.4, "confidence": 0.95}
    document = {
        "schema_version": 2,
        "created": "2026-11-30T12:00:00+00:00",
        "llmc": "0.1.0",
        "machine": {
            "cpu_model": "Some CPU",
            "physical_cores": 6,
            "memory_bytes": 48 << 30,
            "isa": ["avx2"],
            "operating_system": "Linux 6",
            "architecture": "x86_64",
            "python": "3.11.7",
            "packages": {"onnxruntime": "1.32.0"},
            "gpus": [{"name": "NVIDIA Fake", "memory_bytes": 80 << 30}],
        },
        "bandwidth": {"bytes_per_second": spread(45e9), "threads": 2},
        "options": {"runs": 3, "threads": 2, "seed": 7},
        "other_load": {"before": 0.01, "after": 0.02},
        "warnings": ["something was <busy>"],
        "conventions": {"ttft": "to the first token's logits"},
        "subjects": [
            {
                "label": label,
                "path": f"out/{label}",
                "info": {"runtime": "onnxruntime-cpu", "precision": label},
                "artifact": {"bytes": size, "sha256": "ab" * 32, "bits_per_weight": bits},
                "load_s": spread(0.25),
            }
            for label, size, bits in zip(LABELS, (90_000_000, 140_000_000), (5.2, 8.3), strict=True)
        ],
        "results": [result(place, label, case) for place, (label, case) in enumerate(pairs)],
        "comparisons": [
            {
                "numerator": "int4",
                "denominator": "int8",
                "case": CASES[0],
                "metric": "decode",
                "rounds": [1.1, 1.2, 1.5],
                "ratio": spread(1.2),
                "interval": interval,
            }
        ],
    }
    return document | changes


def evaluation(**divergences: float) -> dict[str, Any]:
    """A document of ``llmc eval``: mean KL by label."""
    return {
        "artifacts": [{"label": it, "path": "?", "mean_kl": kl, "ppl": 20 + kl} for it, kl in divergences.items()]
    }


def page(*documents: dict[str, Any], evaluations: tuple[dict[str, Any], ...] = ()) -> str:
    """The page of documents that are called ``a``, ``b``, …"""
    named = [Document(name, Value(it)) for name, it in zip("abcdef", documents, strict=False)]
    return render_page(named, [Document("eval", Value(it)) for it in evaluations])


def parsed(text: str) -> ElementTree.Element:
    """A page as a tree; every element is closed, every attribute quoted."""
    return ElementTree.fromstring(text.partition("\n")[2])


def section(tree: ElementTree.Element, anchor: str) -> ElementTree.Element | None:
    """A section by its place."""
    return next((it for it in tree.iter("section") if it.get("id") == anchor), None)


def charts(tree: ElementTree.Element | None) -> dict[str, ElementTree.Element]:
    """Charts by their title."""
    found = [] if tree is None else [it for it in tree.iter("svg") if it.get("class") == "chart"]
    return {it.get("aria-label", ""): it for it in found}


def rows(tree: ElementTree.Element) -> list[list[str]]:
    """Cells of the first table's body."""
    body = next(tree.iter("tbody"))
    return [["".join(cell.itertext()) for cell in row] for row in body]
