"""Gradio pages, one file per modality."""
