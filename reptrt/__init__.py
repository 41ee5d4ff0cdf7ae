"""reptrt: a PyTorch or ONNX vision model in, an INT8 TensorRT engine as accurate as FP32 out."""
