"""Regression tests: runs compared with stored results."""
