"""Throughput and memory of models side by side: one process for every measurement."""
