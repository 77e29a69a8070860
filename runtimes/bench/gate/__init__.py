"""When a benchmark fails: conditions, intervals that decide them, and the measurement that goes on until they do."""
