"""How much worse an engine is than the model: perplexity and divergence on texts."""
