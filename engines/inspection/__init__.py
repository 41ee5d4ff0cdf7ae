"""Inspect an engine: its kernels, and which layers run in INT8."""
