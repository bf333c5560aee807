"""Scores of CAD programs and parts; `score` gives them all."""

from mm.cad.metrics.score import evaluate, score, summary

__all__ = ["evaluate", "score", "summary"]
