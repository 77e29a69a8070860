"""The machine: its CPU and GPU, what it can move, how busy it is."""
