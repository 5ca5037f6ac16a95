"""DDIM: Denoising Diffusion Implicit Models (arXiv 2010.02502)."""
