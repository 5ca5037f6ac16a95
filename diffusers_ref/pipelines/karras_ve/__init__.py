"""Karras et al.'s sampler of variance-exploding models (arXiv 2206.00364)."""
