"""Calibration and verification samples."""
