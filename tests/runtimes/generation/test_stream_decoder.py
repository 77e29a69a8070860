"""Streamed text against the text of all tokens, for any tokens and any stop strings."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from llmc.compiler.base.errors import UsageError
from llmc.runtimes.generation.stream_decoder import StreamDecoder
from llmc.runtimes.generation.text import TextTokenizer

from .pieces import Pieces, cut

SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
UNICODE = st.text(st.characters(exclude_categories=["Cs"]), max_size=40) | st.text("aé日🙂\ufffd \u2581", max_size=40)


def pieces(decoder: StreamDecoder, tokens: list[int]) -> list[str]:
    return [*(decoder.push(token) for token in tokens), decoder.finish()]


@SETTINGS
@given(tokens=st.lists(st.integers(0, 420), max_size=60))
def test_any_byte_level_tokens(byte_level: Any, tokens: list[int]) -> None:
    tokenizer = TextTokenizer(byte_level)
    for skip in (True, False):
        text = "".join(pieces(StreamDecoder(tokenizer, skip_special_tokens=skip), tokens))
        assert text == tokenizer.decode(tokens, skip_special_tokens=skip)


@SETTINGS
@given(lead=st.sampled_from([b"\xf0", b"\xe6\x97", b"\x80", b"\xff"]), count=st.integers(1, 60), text=UNICODE)
def test_long_runs_that_are_no_text(byte_level: Any, lead: bytes, count: int, text: str) -> None:
    alphabet = byte_level.get_vocab()
    from tokenizers.pre_tokenizers import ByteLevel

    letters = {
        bytes([value]): letter for value, letter in zip(_gpt2_order(), sorted(ByteLevel.alphabet()), strict=True)
    }
    garbage = [alphabet[letters[bytes([value])]] for value in lead] * count
    tokenizer = TextTokenizer(byte_level)
    tokens = [*garbage, *tokenizer.encode(text), *garbage]
    assert "".join(pieces(StreamDecoder(tokenizer), tokens)) == tokenizer.decode(tokens)


def test_long_runs_of_tokens_that_are_half_text(byte_level: Any) -> None:
    tokenizer = TextTokenizer(byte_level)
    texts = {token: tokenizer.decode([token]) for token in range(tokenizer.vocab_size)}
    mixed = [token for token, text in texts.items() if text.endswith("\ufffd") and text.strip("\ufffd")]
    assert mixed
    tokens = (mixed * 60)[:200]
    given_out = pieces(StreamDecoder(tokenizer), tokens)
    assert "".join(given_out) == tokenizer.decode(tokens)


def _gpt2_order() -> list[int]:
    """Byte values in the order of their letters: printable ones stand for themselves, the rest from U+0100 on."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    return [*printable, *(value for value in range(256) if value not in printable)]


@SETTINGS
@given(text=UNICODE)
def test_texts_in_both_tokenizers(byte_level: Any, sentencepiece_like: Any, text: str) -> None:
    for tokenizer in (TextTokenizer(byte_level), TextTokenizer(sentencepiece_like)):
        tokens = tokenizer.encode(text)
        assert "".join(pieces(StreamDecoder(tokenizer), tokens)) == tokenizer.decode(tokens)
        for unseen in (1, 10**6):  # a special token; an id that only the model's logits have
            mixed = [token for pair in ((token, unseen) for token in tokens) for token in pair]
            assert "".join(pieces(StreamDecoder(tokenizer), mixed)) == tokenizer.decode(mixed)


@SETTINGS
@given(tokens=st.lists(st.integers(0, 600), max_size=60))
def test_any_sentencepiece_tokens_give_some_text(sentencepiece_like: Any, tokens: list[int]) -> None:
    tokenizer = TextTokenizer(sentencepiece_like)
    given_out = "".join(pieces(StreamDecoder(tokenizer), tokens))
    assert given_out.replace("\ufffd", "").startswith(tokenizer.decode(tokens).partition("\ufffd")[0])


def test_characters_come_whole_and_at_once(byte_level: Any, sentencepiece_like: Any) -> None:
    text = "ja 日🙂é!"
    for tokenizer in (TextTokenizer(byte_level), TextTokenizer(sentencepiece_like)):
        tokens = tokenizer.encode(text)
        given_out = pieces(StreamDecoder(tokenizer), tokens)
        assert "\ufffd" not in "".join(given_out)
        assert given_out[-1] == ""
        whole = ""
        for index in range(1, len(tokens) + 1):
            whole = max(whole, tokenizer.decode(tokens[:index]).rstrip("\ufffd"), key=len)
            assert "".join(given_out[:index]) == whole


def test_a_half_character_at_the_end_is_shown_as_such(byte_level: Any) -> None:
    tokenizer = TextTokenizer(byte_level)
    tokens = tokenizer.encode("a🙂")[:-1]
    assert "".join(pieces(StreamDecoder(tokenizer), tokens)) == tokenizer.decode(tokens) == "a\ufffd"


def test_the_window_stays_small(byte_level: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = TextTokenizer(byte_level)
    sizes: list[int] = []
    decode = tokenizer.decode
    monkeypatch.setattr(
        tokenizer, "decode", lambda tokens, **options: sizes.append(len(tokens)) or decode(tokens, **options)
    )
    tokens = tokenizer.encode("the engine reads 日本 🙂 and writes " * 30)
    pieces(StreamDecoder(tokenizer), tokens)
    assert max(sizes) <= 8
    assert len(sizes) <= 2 * len(tokens) + 1
    sizes.clear()
    pieces(StreamDecoder(tokenizer), [tokenizer.encode("🙂")[0]] * 500)
    assert max(sizes) <= 20


WORDS = st.lists(st.sampled_from(["stop", " stopped", " the", " engine", "a", "ab"]), max_size=9).map("".join)
STOPS = st.sampled_from(["stop", "top", "o", "topp", "opped", "the e", "he", " engine", "gin", "n", "pedab", "ba"])


@SETTINGS
@example("stop", ["stop"])  # nothing stands before it
@example("a stopped engine", ["opped", "top"])  # the one that begins later is complete first
@example("the engine", ["engine", "gine"])  # both are complete at once: the longest
@example("aab aab", ["b a", "aab"])
@example("an en", ["n e", "n engine"])  # several beginnings are held back, the longest first
@example("ababac", ["abac"])
@example("the sto", ["stop"])  # what was held back comes at the end
@given(
    text=WORDS | st.text("abc ", max_size=30),
    stops=st.lists(STOPS | st.text("abc ", min_size=1, max_size=4), max_size=3),
)
def test_stop_strings(byte_level: Any, text: str, stops: list[str]) -> None:
    tokenizer = TextTokenizer(byte_level)
    decoder = StreamDecoder(tokenizer, stops)
    given_out = pieces(decoder, tokenizer.encode(text))
    assert "".join(given_out) == cut(text, stops)
    assert decoder.stopped == any(stop in text for stop in stops)


@pytest.mark.parametrize(
    ("texts", "stops", "expected", "by"),
    [
        (["stopped"], ["stopped", "pp"], "sto", "pp"),
        (["stopped"], ["pp", "stopped"], "sto", "pp"),
        (["sto", "pped"], ["stopped", "pp"], "sto", "pp"),
        (["stopped"], ["ped", "pped", "d"], "sto", "pped"),
        (["x", "stopped"], ["stopped", "xstopped"], "", "xstopped"),
        (["stop stop"], ["stop"], "", "stop"),
        (["a", "b", "a", "b", "c"], ["abc", "bab"], "a", "bab"),
        (["ab", "a", "ba", "c"], ["abac"], "ab", "abac"),
        (["en", "d", " of"], ["end of turn", "d o"], "en", "d o"),
        (["a", None, "b"], ["ab"], "", "ab"),
    ],
)
def test_stop_strings_that_several_tokens_or_one_complete(
    texts: list[str | None], stops: list[str], expected: str, by: str
) -> None:
    """The one complete first counts, of those complete at once the longest; nothing comes after it."""
    decoder = StreamDecoder(Pieces(*texts, " more"), stops)
    assert "".join(pieces(decoder, [*range(len(texts)), len(texts)])) == expected
    assert decoder.stop_string == by


@pytest.mark.parametrize(
    ("texts", "stops", "given_out"),
    [
        (["ab", "c"], ["bx", "abd"], ["", "abc", ""]),
        (["ab", "c"], ["abd", "bx"], ["", "abc", ""]),
        (["aaab"], ["aac", "abc"], ["aa", "ab"]),
        (["aa"], ["aab"], ["", "aa"]),
        (["x", "en"], ["enx", "ne"], ["x", "", "en"]),
        (["xe"], ["xx", "e!"], ["x", "e"]),
    ],
)
def test_what_may_begin_a_stop_string_waits(texts: list[str], stops: list[str], given_out: list[str]) -> None:
    """As much as the longest beginning, of whichever; it comes when it is none, or at the end."""
    decoder = StreamDecoder(Pieces(*texts), stops)
    assert pieces(decoder, list(range(len(texts)))) == given_out
    assert not decoder.stopped


def test_the_end_of_the_text_may_be_a_stop_string(byte_level: Any) -> None:
    """Half a character is text only once nothing follows; it may complete one, too."""
    tokenizer = TextTokenizer(byte_level)
    tokens = tokenizer.encode("a🙂")[:-1]
    decoder = StreamDecoder(tokenizer, ["\ufffd"])
    assert "".join(pieces(decoder, tokens)) == "a"
    assert decoder.stop_string == "\ufffd"


def test_text_before_half_a_character_is_not_delayed() -> None:
    class Halves(Pieces):
        """The second token ends a character that the first began."""

        def decode(self, tokens: Any, *, skip_special_tokens: bool = True) -> str:
            return super().decode(tokens).replace("\ufffd\ufffd", "é")

    assert pieces(StreamDecoder(Halves("ab\ufffd", "\ufffdc")), [0, 1]) == ["ab", "éc", ""]
    assert pieces(StreamDecoder(Halves("ab\ufffd", "\ufffdc")), [0]) == ["ab", "\ufffd"]


@pytest.mark.parametrize(("skip", "expected"), [(True, ["a", "", "b", ""]), (False, ["a", "<s>", "b", ""])])
def test_special_tokens_are_left_out_where_asked(skip: bool, expected: list[str]) -> None:
    decoder = StreamDecoder(Pieces("a", None, "b"), skip_special_tokens=skip)
    assert pieces(decoder, [0, 1, 2]) == expected


def test_text_before_a_possible_stop_is_not_delayed(byte_level: Any) -> None:
    tokenizer = TextTokenizer(byte_level)
    decoder = StreamDecoder(tokenizer, ["\nUser:"])
    given_out = ""
    for token in [t for part in ("x y", "\n", "Us", "e", "!") for t in tokenizer.encode(part)]:
        given_out += decoder.push(token)
        if given_out == "x y":
            break
    assert given_out == "x y"
    assert decoder.stop_string is None


def test_an_empty_stop_string_is_refused(byte_level: Any) -> None:
    with pytest.raises(UsageError, match="stop string is empty"):
        StreamDecoder(TextTokenizer(byte_level), ["x", ""])
