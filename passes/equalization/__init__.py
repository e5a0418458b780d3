"""Library of the pass equalize: channels through a graph, layers as matrices, the scales."""
