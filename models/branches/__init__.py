"""Parallel linear branches of a traced graph, merged into the one convolution that they equal."""
