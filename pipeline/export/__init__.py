"""The quantized network as ONNX with explicit Q/DQ."""
