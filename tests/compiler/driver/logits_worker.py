"""A peer's process: ``python logits_worker.py SHIFT [VOCABULARY]``; transformers' logits, disturbed by a sine."""

import json
import sys
from pathlib import Path

from llmc.runtimes.bench.workers.protocol import serve


class Target:
    """Opens a directory by the name of its ``config.json``."""

    def open(self, path, threads):
        from transformers import AutoModelForCausalLM

        self.model = AutoModelForCausalLM.from_pretrained(Path(path).parent)
        vocabulary = int(sys.argv[2]) if len(sys.argv) > 2 else json.loads(Path(path).read_text())["vocab_size"]
        return {"runtime": "fake", "precision": "fp32", "vocab_size": vocabulary}

    def logits(self, tokens, first, file):
        import torch

        with torch.inference_mode():
            logits = self.model(torch.tensor([tokens])).logits[0, first:-1]
        logits = logits + float(sys.argv[1]) * torch.sin(torch.arange(logits.shape[-1]))
        Path(file).write_bytes(logits.numpy().tobytes())

    def close(self):
        pass


if __name__ == "__main__":
    serve(Target())
