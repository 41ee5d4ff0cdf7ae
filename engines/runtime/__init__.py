"""Run and time a model: ONNX Runtime on the CPU, or an engine on the GPU."""
