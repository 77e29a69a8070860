import pytest

from llmc.runtimes.bench.load import words
from llmc.runtimes.bench.load.words import COMMON, RandomText
from llmc.runtimes.bench.load.workload import Piece


class Tokenizer:
    """Each two letters are a token, a space is with the letters behind it."""

    vocab_size = 0

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        assert not add_special_tokens
        return [0 for word in text.split() for _ in range((len(word) + 1) // 2)]


def test_without_a_tokenizer_a_word_is_a_token() -> None:
    text = RandomText(None).of([Piece((1,), 5), Piece((2,), 7)])
    assert len(text.split()) == 12
    assert set(text.split()) <= set(COMMON.split())
    assert text == text.strip()


def test_prompts_that_share_a_piece_share_their_beginning() -> None:
    texts = [RandomText(None).of([Piece((1,), 5), Piece((number,), 5)]).split() for number in (2, 3)]
    assert texts[0][:5] == texts[1][:5]
    assert texts[0][5:] != texts[1][5:]


@pytest.mark.parametrize("length", [1, 2, 17, 200])
def test_with_a_tokenizer_a_prompt_has_its_length_as_nearly_as_words_can(length: int) -> None:
    tokenizer = Tokenizer()
    text = RandomText(tokenizer).of([Piece((1,), length)])  # type: ignore[arg-type]
    assert abs(len(tokenizer.encode(text, add_special_tokens=False)) - length) <= 4


def test_words_that_are_one_token_are_found() -> None:
    class Single(Tokenizer):
        vocab_size = 6

        def decode(self, ids: list[int]) -> str:
            return [" cat", "dog", " x", " longer", " Cat", " bird"][ids[0]]

        def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
            return [0] * (3 if "longer" in text else len(text.split()))

    assert words._single_tokens(Single()) == [" cat", " bird"]  # type: ignore[arg-type]
