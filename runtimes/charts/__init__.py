"""llmc.runtimes.charts: charts as SVG, drawn by functions from data to text; they know nothing of benchmarks."""
