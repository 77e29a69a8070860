"""Passes from operators of llmc and the standard to those of one runtime."""
