"""PNDM: Pseudo Numerical Methods for Diffusion Models on Manifolds (arXiv 2202.09778)."""
