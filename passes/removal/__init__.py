"""Removing channels and fitting what is left: the steps that lead from a target to a model."""
