"""The pages that people look at: the Gradio app (`mm app`), the tour (`mm tour`) and the adapter for lmms-eval."""
