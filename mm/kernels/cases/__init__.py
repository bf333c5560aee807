"""Benchmark cases, one module per kernel: real shapes, the peers and the promises."""
