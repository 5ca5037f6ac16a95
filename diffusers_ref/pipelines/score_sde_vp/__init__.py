"""Predictor–corrector sampling of the variance preserving SDEs."""
