"""OpenVINO: the model that keeps its own KV cache, the engine, the session."""
