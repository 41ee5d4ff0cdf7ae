"""A user's ONNX file as a PyTorch module."""
