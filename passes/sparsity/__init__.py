"""Zeros in weights: which weights go, how many of which tensor, and what makes up for them."""
