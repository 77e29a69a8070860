"""Reports joined to rows, speeds pooled over benchmarks, the table, and what beats what."""

from __future__ import annotations

from typing import Any

import pytest

from llmc.compiler.base.errors import UsageError

from .scheme_facts import Facts
from .scheme_table import Row, Speed, check, join, markdown, read_quality, read_speeds


def facts(name: str, *, ours: bool = True, size: int = 90_000_000) -> Facts:
    label = f"{'llmc' if ours else 'llama.cpp'} {name}"
    return Facts(label, name, ours, f"/{name}", size, 135_000_000, 5.25, 4.5, "d")


def row(name: str, kl: float | None, *, ours: bool = True, size: int = 90, **ratios: float) -> Row:
    quality = {} if kl is None else {"mean_kl": kl, "kl_p99": 0.5, "top1_agreement": 0.883, "ppl": 43.5}
    speeds = {geometry: Speed(270 * ratio, ratio) for geometry, ratio in ratios.items()}
    return Row(facts(name, ours=ours, size=size * 1_000_000), quality, speeds)


def report(*paths: str, positions: int = 100, reference: float = 40.0) -> dict[str, Any]:
    figures = {"mean_kl": 0.05, "kl_p99": 0.5, "top1_agreement": 0.9, "ppl": 42.0}
    artifacts = [{"path": path, **figures} for path in paths]
    return {"text": {"positions": positions}, "reference": {"ppl": reference}, "artifacts": artifacts}


def test_artifacts_of_all_reports_by_path() -> None:
    assert list(read_quality([report("/a", "/b"), report("/c", reference=40.1)])) == ["/a", "/b", "/c"]
    assert read_quality([]) == {}


@pytest.mark.parametrize("other", [{"positions": 101}, {"reference": 40.5}])
def test_another_text_or_reference_is_refused(other: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="/b was measured on another text or with another reference"):
        read_quality([report("/a"), report("/b", **other)])


def bench(decode: dict[str, float], rounds: dict[str, list[float]], prompt: int = 128) -> dict[str, Any]:
    """Decode medians by label, the first is the base; ratios base over other of each round."""
    base, case = next(iter(decode)), {"prompt": prompt, "batch": 1}
    subjects = [
        {"label": label, "path": f"/{label.split(',')[0]}", "info": {"details": {"flash_attention": label[-3:]}}}
        for label in decode
    ]
    several = {"prompt": prompt, "batch": 4}
    other = [{"label": label, "case": several, "decode_tokens_per_s": {"median": 1e6}} for label in decode]
    pairs = [
        {"numerator": base, "denominator": label, "metric": metric, "case": case, "rounds": values}
        for label, values in rounds.items()
        for metric in ("prefill", "decode")
    ]
    for pair in pairs:
        if pair["metric"] == "prefill":
            pair["rounds"] = [9.0]
    results = [{"label": label, "case": case, "decode_tokens_per_s": {"median": v}} for label, v in decode.items()]
    return {"subjects": subjects, "results": [*other, *results], "comparisons": pairs, "warnings": []}


def test_speeds_are_medians_over_all_rounds() -> None:
    first = bench({"int4": 200.0, "q": 100.0}, {"q": [2.0, 2.5, 2.0]})
    second = bench({"int4": 300.0, "q": 120.0}, {"q": [4.0, 4.0, 4.0]})
    found = read_speeds([first, second], "/int4", 128)
    assert found["/int4"] == Speed(250.0, 1.0)
    assert found["/q"] == Speed(110.0, pytest.approx((1 / 2.5 + 1 / 4) / 2))
    assert read_speeds([], "/int4", 128) == {}


def test_the_fastest_variant_counts() -> None:
    found = read_speeds(
        [bench({"int4": 200.0, "q, on": 100.0, "q, off": 150.0}, {"q, on": [2.0], "q, off": [1.25]})], "/int4", 128
    )
    assert found["/q"] == Speed(150.0, 0.8)


def test_a_benchmark_of_something_else_is_refused() -> None:
    with pytest.raises(UsageError, match="compares with /int8, not with /int4"):
        read_speeds([bench({"int8": 1.0}, {})], "/int4", 128)
    with pytest.raises(UsageError, match="no case of one row with a prompt of 64"):
        read_speeds([bench({"int4": 1.0}, {})], "/int4", 64)


def test_rows_are_joined_by_path_and_of_another_geometry_by_scheme() -> None:
    names = facts("int8"), facts("int4"), facts("Q4_0", ours=False)
    quality = read_quality([report("/int4"), report("/Q4_0")])
    quality["/int4"] = {**quality["/int4"], "mean_kl": 0.09}
    speeds = {"135M": {"/int4": Speed(270, 1), "/Q4_0": Speed(200, 0.7)}, "1B": {"int4": Speed(40, 1)}}
    rows = join(names, quality, speeds)
    assert [each.facts.scheme for each in rows] == ["Q4_0", "int4", "int8"], "least KL first, none last"
    assert [list(each.speeds) for each in rows] == [["135M"], ["135M", "1B"], []]
    with pytest.raises(UsageError, match="two rows are llmc int8"):
        join([*names, facts("int8")], quality, speeds)


def test_the_table() -> None:
    rows = [row("int4", 0.0465, m=1.0, b=1.0), row("Q4_0", None, ours=False, size=92, m=0.8)]
    assert markdown(rows, ["m", "b"], "llmc int4").splitlines() == [
        "| weights | MB | bits | bits, linear | mean KL | 99 % KL | top-1 | perplexity "
        "| decode tok/s, m (ratio to llmc int4) | decode tok/s, b (ratio to llmc int4) |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| **llmc int4** | 90.0 | 5.25 | 4.50 | **0.0465** | 0.500 | 88.3 % | 43.50 | 270.0 (1.00) | 270.0 (1.00) |",
        "| llama.cpp Q4_0 | 92.0 | 5.25 | 4.50 |  |  |  |  | 216.0 (0.80) |  |",
    ]


def test_a_file_of_another_geometry_has_its_size() -> None:
    own = Row(facts("int4"), {}, {"m": Speed(1.0, 1.0), "b": Speed(1.0, 1.0, 797_600_000)})
    rows = markdown([own, row("Q4_0", None, ours=False, m=1.0)], ["m", "b"], "llmc int4").splitlines()
    assert rows[0].endswith("| decode tok/s, b (ratio to llmc int4) | MB, b |")
    assert rows[2].endswith("| 1.0 (1.00) | 798 |")
    assert rows[3].endswith("|  |  |")


def test_a_small_divergence_has_a_figure_more() -> None:
    assert "**0.00047**" in markdown([row("int8", 0.000466)], [], "llmc int8")


OWN = row("int4", 0.05, m=1.0, b=1.0)


@pytest.mark.parametrize(
    "peer",
    [
        row("Q", 0.06, ours=False, size=80, m=2.0, b=2.0),
        row("Q", 0.05, ours=False, size=80, m=2.0, b=2.0),
        row("Q", 0.04, ours=False, size=90, m=1.0, b=0.9),
        row("Q", 0.06, ours=False, size=80),
    ],
    ids=["worse", "equal in KL", "better, no smaller and no faster", "worse, no speed"],
)
def test_what_beats_nothing(peer: Row) -> None:
    found = check([OWN, peer], ["m", "b"])
    assert (found.violations, found.unknown, found.holding) == ((), (), ("llmc int4",))


@pytest.mark.parametrize(
    ("peer", "sentences"),
    [
        (row("Q", 0.04, ours=False, size=89, m=1.0, b=1.0), ["in fewer bytes (89.0 MB, 90.0 MB)"]),
        (row("Q", 0.04, ours=False, size=91, m=1.01, b=0.5), ["decodes 1.01 times as fast at m"]),
        (row("Q", 0.04, ours=False, size=91, m=0.5, b=1.5), ["decodes 1.50 times as fast at b"]),
        (row("Q", 0.04, ours=False, size=80, m=2.0, b=2.0), ["fewer bytes", "2.00 times", "2.00 times"]),
    ],
)
def test_each_pair_that_violates_is_named(peer: Row, sentences: list[str]) -> None:
    best = row("int8", 0.001, size=150, m=0.9, b=0.9)
    found = check([OWN, peer, best], ["m", "b"])
    assert len(found.violations) == len(sentences)
    for sentence, part in zip(found.violations, sentences, strict=True):
        assert sentence.startswith("llama.cpp Q has a lower KL than llmc int4 (0.0400, 0.0500)")
        assert part in sentence
    assert found.holding == ("llmc int8",)


def test_speeds_are_compared_by_ratio() -> None:
    """Tokens per second come from other minutes of the machine."""
    slow = Row(OWN.facts, OWN.quality, {"m": Speed(200.0, 1.0)})
    peer = Row(facts("Q", ours=False, size=91_000_000), {"mean_kl": 0.04}, {"m": Speed(210.0, 0.95)})
    assert check([slow, peer], ["m"]).holding == ("llmc int4",)


def test_a_tolerance_is_a_part_of_the_speed() -> None:
    peer = row("Q", 0.04, ours=False, size=91, m=1.02, b=1.0)
    assert check([OWN, peer], ["m", "b"], 0.02).holding == ("llmc int4",)
    assert check([OWN, peer], ["m", "b"], 0.019).violations


@pytest.mark.parametrize(
    ("peer", "sentence"),
    [
        (row("Q", None, ours=False, m=1.0, b=1.0), "the KL of llama.cpp Q was not measured"),
        (row("Q", 0.04, ours=False, m=1.0), "which of them is faster at b was not measured"),
    ],
)
def test_what_was_not_measured_does_not_hold(peer: Row, sentence: str) -> None:
    found = check([OWN, peer], ["m", "b"])
    assert (len(found.unknown), found.violations, found.holding) == (1, (), ())
    assert sentence in found.unknown[0]
