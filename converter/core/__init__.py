"""Contracts and tools that everything else builds on; imports no service."""
