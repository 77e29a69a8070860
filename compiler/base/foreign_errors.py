"""What goes wrong in a library's code, in one sentence of ours.

In: a block of calls into transformers, torch or a package that raises whatever it likes. Out: an error of our tree
that names the model, quotes the library's own words and says what to do.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from contextlib import contextmanager

from llmc.compiler.base.errors import LlmcError

_LONGEST = 240


@contextmanager
def told_as(kind: type[LlmcError], what: str, advice: str) -> Iterator[None]:
    """Raise everything that the block raises and that is not ours as ``kind``: ``what (the error); advice.``

    Raises:
        LlmcError: ours as it came, all else as ``kind``.
    """
    try:
        yield
    except LlmcError:
        raise
    except Exception as error:
        raise kind(f"{what} ({quoted(error)}); {advice}.") from error


def quoted(error: BaseException) -> str:
    """The error's words on one line, cut where they become an essay; its type, too, where they say little alone."""
    words = textwrap.shorten(str(error), _LONGEST, placeholder=" …").rstrip(".: ")
    name = type(error).__name__
    # The words of these are a key, a condition or nothing.
    return f"{name}: {words}".removesuffix(": ") if not words or isinstance(error, _BARE) else words


_BARE = (LookupError, AssertionError, AttributeError, TypeError, ArithmeticError)
