from __future__ import annotations

from llmc.runtimes.lint.tables.conditions import Experience, learn
from llmc.runtimes.lint.tables.table import Outcome


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


def rules(*experiences: Experience) -> list[tuple[str, tuple[str, ...], str]]:
    """Outcome, features and case of what is learnt."""
    return [(rule.outcome, rule.features, rule.case) for rule in learn(experiences)]


def test_the_first_case_with_the_fewest_new_features_shows_it() -> None:
    """By name, whatever the order of the tests; conditions that follow from it are left out."""
    ran = seen("runs", "a")
    found = rules(ran, seen("refused", "a", "c", "d"), seen("refused", "b", "c"), seen("refused", "a", "c"))
    assert found == [("refused", ("c",), "a+c")]
    found = rules(ran, seen("refused", "b", "c"), seen("refused", "a", "c"), seen("refused", "a", "b"))
    assert found == [("refused", ("b",), "a+b"), ("refused", ("c",), "a+c")]
    assert rules(ran, seen("refused", "y", "a"), seen("refused", "b", "y")) == [("refused", ("y",), "y+a")]


def test_of_two_cases_with_as_many_features_the_first_by_name() -> None:
    for order in (("x", "a"), ("a", "x")):
        cases = [Experience(f"case {name}", frozenset("n"), "refused", "", frozenset()) for name in order]
        assert rules(seen("runs", "a"), *cases) == [("refused", ("n",), "case a")]


def test_a_condition_that_shares_a_feature_is_kept() -> None:
    found = rules(seen("runs", "a"), seen("refused", "b", "c"), seen("refused", "b", "d"))
    assert found == [("refused", ("b", "c"), "b+c"), ("refused", ("b", "d"), "b+d")]


def test_everything_that_ran_counts() -> None:
    """A feature that any test which ran has is none, though others which ran lack it."""
    ran = [seen("runs", "a", "b"), seen("runs", "c")]
    assert rules(*ran, seen("refused", "a", "x")) == [("refused", ("x",), "a+x")]
    assert rules(*reversed(ran), seen("refused", "a", "x")) == [("refused", ("x",), "a+x")]
    assert rules(*ran, seen("refused", "a", "c")) == [("refused", ("a", "c"), "a+c")]
    assert rules(*ran, seen("refused", "a", "b")) == []


def test_pairs_are_looked_for_where_no_single_feature_tells() -> None:
    ran = [seen("runs", "a", "b"), seen("runs", "b", "c"), seen("runs", "d")]
    assert rules(*ran, seen("refused", "a", "b", "c")) == [("refused", ("a", "c"), "a+b+c")]
    assert rules(*ran, seen("refused", "a", "c", "x")) == [("refused", ("x",), "a+c+x")]


def test_a_type_with_another_feature_makes_a_condition_of_both() -> None:
    found = rules(seen("runs", "a", "T=float32"), seen("refused", "b", "T=int8", types=("T=int8",)))
    assert found == [("refused", ("T=int8", "b"), "b+T=int8")]
    assert rules(seen("runs", "a", "since=13"), seen("refused", "b", "since=21")) == [
        ("refused", ("b", "since=21"), "b+since=21")
    ]


def test_witnesses_of_wrong_numbers_have_all_features_of_the_condition() -> None:
    ran = seen("runs", "a")
    assert rules(ran, seen("wrong", "b"), seen("wrong", "c")) == []
    assert rules(ran, seen("wrong", "b"), seen("refused", "b", "c")) == [("refused", ("c",), "b+c")]
    assert rules(ran, seen("wrong", "b"), seen("wrong", "a", "b")) == [("wrong", ("b",), "a+b")]


def test_wrong_numbers_are_compared_with_those_that_are_right() -> None:
    """What is wrong was taken, so it is no example of what runs."""
    found = rules(seen("runs", "a"), seen("wrong", "b", "c"), seen("wrong", "b", "d"), seen("refused", "b", "e"))
    assert found == [("refused", ("e",), "b+e")]
    found = rules(seen("runs", "a"), seen("wrong", "b"), seen("wrong", "b", "a"))
    assert found == [("wrong", ("b",), "b")]
    assert rules(seen("wrong", "a"), seen("wrong", "a", "b")) == []


def test_the_message_is_that_of_the_case() -> None:
    (rule,) = learn([seen("runs", "a"), Experience("case", frozenset("b"), "refused", "no such luck")])
    assert (rule.case, rule.message) == ("case", "no such luck")
