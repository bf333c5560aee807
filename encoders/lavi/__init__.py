"""LaVi: vision enters a language model through its normalisation layers (arXiv:2506.16691)."""
