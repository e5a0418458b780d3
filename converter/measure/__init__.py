"""Figures of a model: size, speed, agreement with another model, accuracy."""
