"""Vision-language models on a backbone: the concatenation host."""
