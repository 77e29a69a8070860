"""What every runtime offers, and what every session shares: the protocol, sampling, padding, times."""
