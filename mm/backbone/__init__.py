"""One adapter over every Hugging Face decoder language model."""
