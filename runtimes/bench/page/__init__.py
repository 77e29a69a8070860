"""llmc.runtimes.bench.page: a benchmark's documents as one HTML file that people look at."""
