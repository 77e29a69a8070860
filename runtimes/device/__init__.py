"""Sessions on a device: memory and launches, recorded decode steps, the sampler, the loop without the host."""
