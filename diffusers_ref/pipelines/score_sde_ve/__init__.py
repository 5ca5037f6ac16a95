"""Predictor–corrector sampling of the variance exploding SDE."""
