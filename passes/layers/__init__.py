"""Whole layers and residual blocks: finding them, measuring what they do, taking them out."""
