"""Data, letterbox, decoding, NMS and mAP together, against a published detector's accuracy."""

from __future__ import annotations

import os
from pathlib import Path

import onnxruntime
import pytest

from reptrt.models.spec import Preprocess
from reptrt.pipeline.data.datasets import open_detection
from reptrt.pipeline.validation.detection_metrics import CocoAccuracy, detect_in_images

DATA = Path(os.environ.get("REPTRT_DATA", "../shared/data"))
WEIGHTS = DATA / "weights" / "yolov6lite_s_coco.onnx"
IMAGES = DATA / "images" / "coco_val"
STRIDES = (8, 16, 32, 64)


@pytest.mark.skipif(
    not (WEIGHTS.exists() and IMAGES.exists()),
    reason=f"no {WEIGHTS} and {IMAGES}: set REPTRT_DATA to the folder of real weights and images",
)
def test_yolov6lite_s_reaches_its_measured_map_on_coco() -> None:
    preprocess = Preprocess((320, 320), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), layout="letterbox")
    images = open_detection(IMAGES, preprocess, num_classes=80)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 2
    session = onnxruntime.InferenceSession(WEIGHTS, options, providers=["CPUExecutionProvider"])
    accuracy = CocoAccuracy(images.annotations, num_classes=80)
    for batch in images.batches(1):
        outputs = session.run(["out0", "out1", "out2", "out3"], {"in0": batch.images})
        accuracy.update(batch.indices.tolist(), detect_in_images(outputs, STRIDES, batch))
    result = accuracy.compute()
    assert accuracy.num_images == 128
    assert result.map_50_95 == pytest.approx(30.4, abs=0.15)
    assert result.map_50 == pytest.approx(43.5, abs=0.3)
