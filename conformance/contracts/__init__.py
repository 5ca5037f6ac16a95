"""Contracts: properties that any scheduler, model or pipeline must have, whatever it computes."""
