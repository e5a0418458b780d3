"""Statistics of activations, gathered in one streaming run."""
