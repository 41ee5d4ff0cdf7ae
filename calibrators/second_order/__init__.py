"""Closed forms on the second moments of what a layer reads: where to clip, and how to round."""
