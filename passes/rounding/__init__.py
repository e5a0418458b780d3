"""Choosing integers, or entries of a table, for weights: pure numpy, no model."""
