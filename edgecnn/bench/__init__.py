"""Latency, throughput, cold start and memory of a bundle's artifacts, and whether to trust the measurement."""
