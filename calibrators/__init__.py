"""How scales (and rounding) are chosen: post-training quantization in PyTorch.

Not TensorRT's `IInt8Calibrator`: implicit calibration is gone in TensorRT 11. Everything chosen
here ends up in the Q/DQ ONNX model.
"""
