"""ONNX Runtime's static quantization, set up for TensorRT.

Symmetric INT8 activations and weights, one weight scale per output channel, float biases, and Q/DQ
only at the inputs of weighted operators: ONNX Runtime's quantizer itself advises against Q/DQ at
their outputs for TensorRT. All else is its default. Images are calibrated one at a time, because
its histograms hold every tensor of all that they are given at once.
"""

from __future__ import annotations

import contextlib
import io
from pathlib import Path
from tempfile import TemporaryDirectory

from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process

from reptrt.engines.outputs.detection import FloatArray
from reptrt.models.graph import INPUT_NAME
from reptrt.pipeline.data.datasets import LazyBatches

CALIBRATION_METHODS = {
    "percentile": CalibrationMethod.Percentile,
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
}
WEIGHTED = ["Conv", "Gemm", "MatMul"]
PERCENTILE = 99.99
OPTIONS = {
    "ActivationSymmetric": True,
    "WeightSymmetric": True,
    "QuantizeBias": False,
    "MatMulConstBOnly": True,
    "OpTypesToExcludeOutputQuantization": WEIGHTED,
    "QDQOpTypePerChannelSupportToAxis": {"MatMul": 1},
    "CalibTensorRangeSymmetric": True,
    "CalibPercentile": PERCENTILE,
    "CalibStridedMinMax": 1,  # of every method: how many images are collected at once
}


class CalibrationImages:
    """What ONNX Runtime reads images through: as many as `set_range` says, then None.

    It asks for ranges in ascending order, without gaps.
    """

    def __init__(self, batches: LazyBatches[FloatArray]) -> None:
        self._length, self._images, self._left = len(batches), iter(batches), 0

    def __len__(self) -> int:
        """Number of images."""
        return self._length

    def set_range(self, start_index: int, end_index: int) -> None:
        """Start the next range."""
        self._left = end_index - start_index

    def get_next(self) -> dict[str, FloatArray] | None:
        """Return the next image of the range."""
        if self._left == 0:
            return None
        self._left -= 1
        return {INPUT_NAME: next(self._images)}


def quantize_with_onnxruntime(
    fp32_onnx: Path, batches: LazyBatches[FloatArray], method: str, qdq_onnx: Path
) -> None:
    """Quantize `fp32_onnx` with ONNX Runtime on `batches` of one calibration image each."""
    qdq_onnx.parent.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        prepared = Path(folder, "prepared.onnx")
        quant_pre_process(str(fp32_onnx), str(prepared))
        quantize_static(
            str(prepared),
            str(qdq_onnx),
            CalibrationImages(batches),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=WEIGHTED,
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CALIBRATION_METHODS[method],
            extra_options=OPTIONS,
        )
