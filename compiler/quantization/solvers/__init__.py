"""One solver a file: each chooses numbers, scales and zero points for the rows of a layer."""
