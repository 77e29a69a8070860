"""Weights chosen on a text: the model runs over it layer by layer, and each layer is solved for what it reads."""
