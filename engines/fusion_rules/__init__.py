"""The fusion rules of classic TensorRT: which layers an engine would have, without building it."""

from reptrt.engines.fusion_rules.predict import RULES, predict_kernels
from reptrt.engines.fusion_rules.read_onnx import UnpredictableModelError

__all__ = ["RULES", "UnpredictableModelError", "predict_kernels"]
