"""Replacing calls of model functions by their bodies."""
