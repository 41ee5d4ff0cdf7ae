"""Baselines: scales from what an observer saw of each tensor."""
