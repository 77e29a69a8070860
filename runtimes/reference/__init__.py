"""transformers as the reference that engines are compared with."""
