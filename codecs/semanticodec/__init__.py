"""SemantiCodec: semantic and acoustic audio tokens with a latent-diffusion decoder (arXiv:2405.00233)."""
