"""Passes that bring a graph to the form that ONNX Runtime fuses on CPUs."""
