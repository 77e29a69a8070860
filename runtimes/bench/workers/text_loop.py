"""One prompt after the other through the loop that users run, with a clock around all of it.

In: an open session, the directory of its tokenizer, texts or chats. Out: for each, clock readings and sizes as plain
values: when the text came in, when it was tokens, when each token's text had been given out.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from llmc.runtimes.generation.batch import Batch
from llmc.runtimes.generation.request import Request
from llmc.runtimes.generation.text import TextTokenizer
from llmc.runtimes.generation.text_engine import Reply
from llmc.runtimes.session.engine import Session
from llmc.runtimes.session.sampling_params import SamplingParams


def answer_texts(
    session: Session, directory: Path, prompts: Sequence[Any], gen: int, sampling: SamplingParams
) -> list[dict[str, Any]]:
    """Answer each prompt with ``gen`` tokens; the first one is answered once before, untimed.

    The end token is not heeded.

    Raises:
        UsageError: a prompt that is empty or does not fit the context, or a chat where the model has no template.
        ArtifactError: the directory has no tokenizer.
    """
    tokenizer = TextTokenizer.from_directory(directory)
    _answer(session, tokenizer, prompts[0], min(gen, 4), sampling)
    return [_answer(session, tokenizer, prompt, gen, sampling) for prompt in prompts]


def _answer(
    session: Session, tokenizer: TextTokenizer, prompt: Any, gen: int, sampling: SamplingParams
) -> dict[str, Any]:
    clock = time.perf_counter_ns
    ticks, first_text = [clock()], None
    ids = tokenizer.encode(prompt) if isinstance(prompt, str) else tokenizer.encode_chat(prompt)
    ticks.append(clock())
    request = Request(ids, gen, sampling)
    batch = Batch.of(session, [request])
    reply, tokens = Reply(batch, [request], tokenizer, ()), 0
    for (piece,) in reply:
        if len(request.tokens) == tokens:
            continue  # a part of the prompt was computed
        tokens = len(request.tokens)
        if piece and first_text is None:
            first_text = len(ticks)
        ticks.append(clock())
    batch.close()
    return {
        "prompt_tokens": len(ids),
        "tokens": tokens,
        "characters": len(reply.texts[0]),
        "ticks": ticks,
        "first_text": first_text,
    }
