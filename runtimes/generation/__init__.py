"""The decode loop, and text in and out of it."""
