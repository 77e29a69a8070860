"""Models of random weights, memory and arguments for measurements."""
