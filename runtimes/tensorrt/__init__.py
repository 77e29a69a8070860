"""TensorRT and TensorRT-RTX: engines built from a graph of standard operators, and sessions that run them."""
