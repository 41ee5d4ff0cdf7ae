"""Runs held against what was measured before."""
