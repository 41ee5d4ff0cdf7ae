import math

import pytest

from reptrt.engines.report_schema import (
    Accuracy,
    BlockLoss,
    End2End,
    Gate,
    ModelLatency,
    OutputNumerics,
    Report,
)
from reptrt.pipeline.report.precision import engine_precision, precision_name
from reptrt.pipeline.report.summary import (
    accuracy_rows,
    headline,
    latency_origin,
    loss_change,
    nms_note,
    reconstruction_note,
    sample_note,
    worst_snr,
)
from tests.reports import make_report


def report(quantized: float, passed: bool | None = None) -> Report:
    return make_report(
        gate=Gate(max_drop=1.0, passed=passed),
        accuracy=Accuracy("map_50_95", fp32=70.0, quantized=quantized, drop=70.0 - quantized),
    )


@pytest.mark.parametrize(
    ("quantized", "passed", "beginning"),
    [(69.5, True, "INT8 loses 0.50 points of mAP 50–95"),
     (60.0, False, "INT8 loses 10.00 points of mAP 50–95"),
     (70.0, True, "INT8 keeps the mAP 50–95 of FP32"),
     (70.3, True, "INT8 is 0.30 points of mAP 50–95 above FP32")],
)  # fmt: skip
def test_the_verdict_names_the_loss(quantized: float, passed: bool, beginning: str) -> None:
    judged = headline(report(quantized, passed))
    assert judged.sentence.startswith(beginning)
    assert judged.gate == ("passed" if passed else "failed")


def test_without_a_judgement_there_is_no_gate() -> None:
    assert headline(report(69.0)).gate == "absent"
    assert headline(make_report(accuracy_note="no --eval")).sentence == (
        "Accuracy was not measured: no --eval"
    )


def test_fewer_bits_are_not_called_int8() -> None:
    assert precision_name(make_report(weight_bits=4)) == "W4A8"


def test_a_network_without_a_quantized_layer_is_called_what_it_is() -> None:
    assert engine_precision(make_report(calibrator="none", precision="fp16")) == "FP16"
    assert engine_precision(make_report(calibrator="minmax", precision="fp16")) == "INT8"


@pytest.mark.parametrize(
    ("backend", "caveat"),
    [("onnxruntime 1.22.0", "no oracle for the speed of the TensorRT engine"),
     ("ONNX Runtime 1.22.0", "no oracle for the speed of the TensorRT engine"),
     ("tensorrt_rtx 1.7.0", "no oracle for the speed of classic TensorRT"),
     ("tensorrt 11.1", "Measured with tensorrt 11.1 on X")],
)  # fmt: skip
def test_latency_says_what_it_does_not_tell(backend: str, caveat: str) -> None:
    measured = make_report(latency_ms=ModelLatency(backend=backend, device="X"))
    assert latency_origin(measured).endswith(caveat)


def test_few_images_are_named_with_their_grain() -> None:
    note = sample_note(Accuracy("top1", num_images=250))
    assert note == "250 images: one image is 0.40 points"
    assert sample_note(Accuracy("map_50_95", num_images=1)) == "1 image"


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [(0.08, 0.06, -25), (1.0, 1.5, 50), (0.0, 0.0, None), (None, 1.0, None), (1.0, None, None),
     (1.0, math.inf, None), (math.nan, 1.0, None)],
)  # fmt: skip
def test_the_change_of_a_loss_is_a_share_of_what_it_was(
    before: float | None, after: float | None, change: float | None
) -> None:
    block = BlockLoss(name="b", stage=0, before=before, after=after, seconds=1.0)
    assert loss_change(block) == (None if change is None else pytest.approx(change))


def test_one_block_without_a_change_is_only_counted() -> None:
    block = BlockLoss(name="b", stage=0, before=0.0, after=0.0, seconds=2.0)
    assert reconstruction_note([block]).replace("\u00a0", " ") == "1 block in 2.0 s"


def test_what_learned_is_counted_where_the_blocks_say_why_not_more() -> None:
    blocks = [
        BlockLoss("a", 0, 1.0, 0.5, 2.0, steps=0, reason="enough"),
        BlockLoss("b", 0, 1.0, 0.5, 4.0, steps=25, reason="a round gained too little"),
    ]
    note = reconstruction_note(blocks).replace("\u00a0", " ")
    assert note == "2 blocks in 6.0 s, 1 of them learned, 25 steps, median change −50.0 %"


def test_the_worst_output_is_the_one_of_lowest_snr() -> None:
    numerics = {"a": OutputNumerics(9.0), "b": OutputNumerics(-2.0), "c": OutputNumerics(None)}
    assert worst_snr(numerics) == -2
    assert worst_snr({"a": OutputNumerics(None)}) is None


def test_an_engine_with_nms_is_judged_by_its_boxes() -> None:
    compared = End2End(
        score_threshold=0.25, iou_threshold=0.65, max_detections=100, identical=18.75,
        agreement=99.62, num_images=16, backend="onnxruntime",
    )  # fmt: skip
    assert (
        nms_note(compared)
        .replace("\u00a0", " ")
        .endswith("equal to NumPy’s in 3 of 16 images, F1 99.62 %")
    )


@pytest.mark.parametrize(("num_images", "leads"), [(700, True), (50_000, False)])
def test_where_labels_are_few_closeness_leads_and_top1_has_its_error(
    num_images: int, leads: bool
) -> None:
    accuracy = Accuracy("top1", 80.0, 79.0, 1.0, 95.5, num_images, divergence=0.0312)
    labels = [row.label for row in accuracy_rows(make_report(accuracy=accuracy))]
    close = ["agreement with FP32", "KL divergence"]
    own = ["top-1 (standard error 1.5)"] if leads else ["top-1"]
    assert labels == ([*close, *own] if leads else [*own, *close])


@pytest.mark.parametrize(("fp32", "images"), [(150.0, 10), (-1.0, 10), (50.0, -1)])
def test_what_is_no_share_of_images_has_no_standard_error(fp32: float, images: int) -> None:
    assert Accuracy("top1", fp32, num_images=images).standard_error is None


def test_a_detector_has_no_standard_error_and_no_divergence() -> None:
    accuracy = Accuracy("map_50_95", 40.0, 39.0, 1.0, 95.5, 100)
    rows = accuracy_rows(make_report(accuracy=accuracy))
    assert [row.label for row in rows] == ["mAP 50–95", "agreement with FP32"]
