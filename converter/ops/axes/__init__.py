"""Which axes of an operator's inputs and outputs must be cut together: one row per operator."""
