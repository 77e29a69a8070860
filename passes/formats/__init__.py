"""The arithmetic of small numbers."""
