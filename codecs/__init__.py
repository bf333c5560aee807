"""Discrete tokenizers for audio and video. Import as `mm.codecs` (the bare name is Python's own module)."""
