"""Random prompts as text of a given length, for servers that take no token ids.

In: :class:`~.workload.Piece` s, a tokenizer where there is one. Out: text. With the server's tokenizer a prompt has
as many tokens as were asked for, but for what a template or a begin-of-text token adds; without one it has as many
common words, and the server says how many tokens those were.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence

from llmc.runtimes.bench.load.workload import Piece, random_ids
from llmc.runtimes.generation.text import TextTokenizer

COMMON = """
the of and to in is that it was for on are as with his they at be this from have or by one had not but what
all were when we there can an your which their said if do will each about how up out them then she many some
so these would other into has more her two like him see time could no make than first been its who now people
my made over did down only way find use may water long little very after words called just where most know get
through back much before go good new write our used me man too any day same right look think also around
another came come work three word must because does part even place well such here take why things help put
years different away again off went old number great tell men say small every found still between name should
home big give air line set own under read last never us left end along while might next sound below saw
something thought both few those always looked show large often together asked house world going want school
important until form food keep children feet land side without boy once animals life enough took sometimes
four head above kind began almost live page got earth need far hand high year mother light parts country
father let night following
"""
"""Frequent English words, most of which are one token of any vocabulary."""
_WORD = re.compile(r" [a-z]{2,}")
_MOST_WORDS, _TRIES = 2048, 8


class RandomText:
    """Makes text of pieces.

    Attributes:
        words: What it is made of, each with a space before it.
    """

    def __init__(self, tokenizer: TextTokenizer | None) -> None:
        """With the server's tokenizer, or without."""
        self._tokenizer = tokenizer
        self.words = [f" {word}" for word in COMMON.split()]
        if tokenizer is not None and len(single := _single_tokens(tokenizer)) >= len(self.words):
            self.words = single

    def of(self, pieces: Sequence[Piece]) -> str:
        """Text of as many tokens as the pieces have, as nearly as words can."""
        words = [self.words[number] for number in random_ids(pieces, len(self.words))]
        if self._tokenizer is None:
            return "".join(words).lstrip()
        wanted, last = len(words), pieces[-1]
        spare = (self.words[number] for number in random_ids((Piece((*last.key, 1), wanted),), len(self.words)))
        for _ in range(_TRIES):
            tokens = len(self._tokenizer.encode("".join(words).lstrip(), add_special_tokens=False))
            change = round((wanted - tokens) * len(words) / max(tokens, 1))  # a word may be several tokens
            if change == 0:
                break
            words = words[: max(1, len(words) + change)] + list(itertools.islice(spare, max(0, change)))
        return "".join(words).lstrip()


def _single_tokens(tokenizer: TextTokenizer) -> list[str]:
    """Words that are one token of their own, behind other words as well."""
    found = []
    for token in range(tokenizer.vocab_size):
        text = tokenizer.decode([token])
        if _WORD.fullmatch(text) and len(tokenizer.encode(text * 2, add_special_tokens=False)) == 2:
            found.append(text)
            if len(found) == _MOST_WORDS:
                break
    return found
