"""Checkpoints whose weights are stored in small numbers, read as the floats that these stand for."""
