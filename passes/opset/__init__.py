"""Conversion between versions of the default operator set, node by node."""
