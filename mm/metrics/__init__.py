"""FLOPs, latency, memory and scores."""

from mm.metrics.flops import ExecutedFlops, count_flops, on_meta
from mm.metrics.latency import LatencyRow, measure
from mm.metrics.memory import MemoryUse, measure_memory
from mm.metrics.scores import accuracy, exact_match, normalise_answer, perplexity, recall_at_k, token_nll
from mm.metrics.shapes import DecoderShape, ViTShape

__all__ = [
    "DecoderShape",
    "ExecutedFlops",
    "LatencyRow",
    "MemoryUse",
    "ViTShape",
    "accuracy",
    "count_flops",
    "exact_match",
    "measure",
    "measure_memory",
    "normalise_answer",
    "on_meta",
    "perplexity",
    "recall_at_k",
    "token_nll",
]
