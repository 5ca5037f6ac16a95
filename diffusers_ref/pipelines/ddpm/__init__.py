"""DDPM: Denoising Diffusion Probabilistic Models (arXiv 2006.11239)."""
