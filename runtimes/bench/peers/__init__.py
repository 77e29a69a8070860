"""Peers by their name alone: environments that llmc makes for them, and models converted by their own converters."""
