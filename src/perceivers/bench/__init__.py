"""Compare throughput and memory of models; every measurement runs in its own process."""
