"""llmc.runtimes.bench: latency, throughput, memory and the machine they were measured on."""
