"""What is known about operators: one table per concern."""
