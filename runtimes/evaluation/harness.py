"""Engines as models of the lm-evaluation-harness: ``python -m llmc.runtimes.evaluation.harness run --model llmc …``.

In: the harness's own command line, with ``--model llmc --model_args path=DIR[,threads=N][,max_length=N]``. Out: its
results. The harness (0.4.13) takes models of other packages only from a process that has registered them, and reads
no entry points for them; so this module registers :func:`model_class` and then runs the harness's command.

In a program of one's own: ``register()``, then ``lm_eval.simple_evaluate(model="llmc", model_args={"path": DIR})``.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from llmc.compiler.base.errors import LlmcError, MissingDependencyError
from llmc.runtimes.evaluation.continuations import ContinuationScorer
from llmc.runtimes.session.sampling_params import SamplingParams

NAME = "llmc"
DEFAULT_NEW_TOKENS = 256
"""Of a task that asks for no number, as the harness's own models have it."""


@functools.cache
def model_class() -> Any:
    """The class that the harness makes a model of.

    Raises:
        MissingDependencyError: the harness is not installed.
    """
    try:
        from lm_eval import utils
        from lm_eval.api.model import TemplateLM
    except ImportError as error:
        raise MissingDependencyError("lm_eval is not installed; pip install lm_eval") from error

    class LlmcModel(TemplateLM):  # type: ignore[misc]
        """An artifact of llmc's; see :class:`ContinuationScorer`."""

        def __init__(
            self, path: str, threads: int | None = None, max_length: int | None = None, **ignored: Any
        ) -> None:
            # The harness also hands over what it knows of devices and batches, which an engine settles by itself.
            super().__init__()
            self._scorer = ContinuationScorer.open(Path(path), threads=threads, max_length=max_length)
            self._tokenizer = self._scorer.engine.tokenizer
            self._directory = Path(path).resolve()

        @property
        def tokenizer_name(self) -> str:
            return str(self._directory)

        @property
        def eot_token_id(self) -> int:
            return int(self._tokenizer.eos_ids[0])

        @property
        def prefix_token_id(self) -> int:
            begin = self._tokenizer.token_id(self._tokenizer.special_tokens.get("bos_token", ""))
            return self.eot_token_id if begin is None else begin

        @property
        def max_length(self) -> int:
            return self._scorer.max_length

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return self._tokenizer.encode(string, add_special_tokens=add_special_tokens is not False)

        def apply_chat_template(
            self, chat_history: Sequence[Mapping[str, str]], add_generation_prompt: bool = True
        ) -> str:
            return self._tokenizer.render_chat(chat_history, add_generation_prompt=add_generation_prompt)

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            answers = []
            for texts, context, continuation in requests:
                answers.append(self._scorer.log_likelihood(context, continuation))
                self.cache_hook.add_partial("loglikelihood", texts, answers[-1])
            return answers

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            totals = []
            for request in requests:
                tokens = self.tok_encode(request.args[0], add_special_tokens=False)
                windows = utils.get_rolling_token_windows(tokens, self.prefix_token_id, self.max_length - 1, 1)
                pairs = map(utils.make_disjoint_window, windows)
                totals.append(sum(self._scorer.log_likelihood(*pair)[0] for pair in pairs))
                self.cache_hook.add_partial("loglikelihood_rolling", request.args, totals[-1])
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            texts = []
            for request in requests:
                context, wanted = request.args
                stop, count, sampling = generation_settings(wanted)
                texts.append(self._scorer.write(context, stop, count, sampling))
                self.cache_hook.add_partial("generate_until", request.args, texts[-1])
            return texts

    return LlmcModel


def generation_settings(wanted: Mapping[str, Any]) -> tuple[list[str], int, SamplingParams]:
    """Where a text ends, how many tokens it may have, how they are chosen, of what a task of the harness asks for."""
    until = wanted.get("until") or []
    stop = [until] if isinstance(until, str) else [text for text in until if text]
    count = next((wanted[name] for name in ("max_gen_toks", "max_new_tokens", "max_tokens") if name in wanted), None)
    warm = float(wanted.get("temperature") or 0.0) if wanted.get("do_sample", True) else 0.0
    sampling = SamplingParams(warm, top_p=float(wanted.get("top_p") or 1.0)) if warm else SamplingParams()
    return stop, int(count or DEFAULT_NEW_TOKENS), sampling


def register() -> None:
    """Let the harness know the model ``llmc``.

    Raises:
        MissingDependencyError: the harness is not installed.
    """
    model = model_class()
    # The harness looks for its own models only while none is registered.
    import lm_eval.models  # noqa: F401
    from lm_eval.api.registry import register_model

    register_model(NAME)(model)


def main() -> None:
    """The harness's command, with ``llmc`` among its models."""
    try:
        register()
    except LlmcError as error:
        sys.stderr.write(f"llmc: error: {error}\n")
        raise SystemExit(error.exit_code) from error
    from lm_eval.__main__ import cli_evaluate

    cli_evaluate()


if __name__ == "__main__":
    main()
