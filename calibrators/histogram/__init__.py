"""Baselines: scales from a histogram of each tensor."""
