"""What was done, what was skipped and why, and what it cost and gained."""
