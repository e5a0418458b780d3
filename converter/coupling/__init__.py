"""Atoms: the smallest things that can be removed from a model, and what must go with them."""
