"""The decode loop, and text in and out of it. For programs: :class:`Generator`, token ids in and out."""

from llmc.runtimes.generation.generator import Generator

__all__ = ["Generator"]
