"""Scores of weights: how much the model loses without them."""
