"""Fused attention, modulated norm and codeword search."""
