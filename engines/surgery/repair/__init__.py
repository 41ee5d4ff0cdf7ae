"""Passes that make any Q/DQ file one that every TensorRT from 10.3 on takes."""
