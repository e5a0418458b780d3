"""Affine quantization: integer grids, ranges to scales, and where Q/DQ nodes go."""
