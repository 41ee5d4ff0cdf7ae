"""ONNX file in, engine out: build, run, time and inspect TensorRT engines, without PyTorch.

Everything here also runs on a Jetson: it imports with torch absent, and TensorRT itself is
imported only when a target asks for it (`reptrt.engines.target.load_backend`).
"""

import os

# ONNX Runtime's wheels send it, and keep an identifier in the user's home.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
