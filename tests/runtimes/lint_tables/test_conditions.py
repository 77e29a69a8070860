from __future__ import annotations

from llmc.runtimes.lint_tables.conditions import Experience, learn
from llmc.runtimes.lint_tables.table import Outcome


def seen(outcome: Outcome, *features: str, types: tuple[str, ...] = ()) -> Experience:
    return Experience("+".join(features), frozenset(features), outcome, outcome, frozenset(types))


def test_a_feature_that_nothing_which_ran_has() -> None:
    found = learn([seen("runs", "a"), seen("refused", "a", "b"), seen("refused", "a", "b", "c")])
    assert [(rule.outcome, rule.features) for rule in found] == [("refused", ("b",))]


def test_a_pair_that_nothing_which_ran_has_together() -> None:
    found = learn([seen("runs", "a"), seen("runs", "b"), seen("refused", "a", "b")])
    assert [rule.features for rule in found] == [("a", "b")]


def test_no_condition_without_a_difference() -> None:
    assert learn([seen("runs", "a", "b"), seen("refused", "a", "b")]) == ()
    assert learn([seen("refused", "a")]) == ()


def test_types_and_versions_alone_make_no_condition() -> None:
    assert learn([seen("runs", "T=float32"), seen("refused", "T=int8", types=("T=int8",))]) == ()
    assert learn([seen("runs", "since=13"), seen("refused", "since=21")]) == ()


def test_wrong_numbers_need_two_witnesses() -> None:
    once = [seen("runs", "a"), seen("wrong", "a", "b")]
    assert learn(once) == ()
    found = learn([*once, seen("wrong", "b", "c")])
    assert [(rule.outcome, rule.features) for rule in found] == [("wrong", ("b",))]


def test_what_is_wrong_is_taken() -> None:
    found = learn([seen("wrong", "a", "b"), seen("refused", "a", "b", "c")])
    assert [(rule.outcome, rule.features) for rule in found] == [("refused", ("c",))]
