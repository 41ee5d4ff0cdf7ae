"""ONNX file to engine: TensorRT 10, 11 and TensorRT-RTX."""
