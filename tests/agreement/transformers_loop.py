"""Prefill and greedy decoding in transformers as a user writes them: ``MODEL DTYPE THREADS PROMPT GEN WARM-STEPS``.

Out: a line of JSON, seconds to the first token and seconds of the ``GEN - 1`` steps behind it. It imports nothing of
llmc: what llmc measures of transformers is compared with it.
"""

import json
import sys
import time

import torch
from transformers import AutoModelForCausalLM


def main(path: str, dtype: str, threads: int, prompt: int, gen: int, warm: int) -> None:
    """One run, after one of the same prompt and few steps."""
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    ids = torch.randint(model.config.vocab_size, (1, prompt))

    def generate(tokens: torch.Tensor, count: int) -> list[float]:
        """The moments before the prompt and after each token."""
        cache, moments = None, [time.perf_counter()]
        for _ in range(count):
            out = model(tokens, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache, tokens = out.past_key_values, out.logits[:, -1:].argmax(-1)
            tokens.item()
            moments.append(time.perf_counter())
        return moments

    with torch.no_grad():
        generate(ids, 1 + warm)
        moments = generate(ids, gen)
    sys.stdout.write(json.dumps({"first_s": moments[1] - moments[0], "steps_s": moments[-1] - moments[1]}) + "\n")


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], *(int(word) for word in sys.argv[3:7]))
