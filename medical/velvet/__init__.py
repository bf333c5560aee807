"""VELVET-Med: vision-language pre-training for CT volumes and reports (arXiv:2508.12108).

Two encoders: a 3-D Swin Transformer (`vision.py`) and TriBERT (`text.py`), which reads a report at word, sentence and
report level through one attention mask. They are tied at three levels (`loss.py`) and fused by cross-attention.
"""
