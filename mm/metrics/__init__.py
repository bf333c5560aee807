"""FLOPs, latency, memory and scores."""
