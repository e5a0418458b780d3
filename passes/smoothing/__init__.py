"""Moving the spread of activations between channels into weights, without changing results."""
