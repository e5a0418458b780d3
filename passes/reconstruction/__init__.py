"""Closed-form recovery: weights that give the original's outputs from the present inputs."""
