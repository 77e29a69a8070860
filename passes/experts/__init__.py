"""What passes know of experts: their weights and their routing."""
