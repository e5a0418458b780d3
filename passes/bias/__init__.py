"""Library of the pass correct_bias: matching layers of two models, their means, their biases."""
