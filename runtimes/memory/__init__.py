"""The memory that an engine will need, known before it is opened."""
