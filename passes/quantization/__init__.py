"""Passes that make weights and caches small."""
