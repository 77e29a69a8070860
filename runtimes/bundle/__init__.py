"""Wheels and an install script for a machine without a network."""
