"""The tokenizer of an artifact, for programs that want no engine: ``TextTokenizer.from_directory(directory)``."""

from llmc.runtimes.generation.text import TextTokenizer

__all__ = ["TextTokenizer"]
