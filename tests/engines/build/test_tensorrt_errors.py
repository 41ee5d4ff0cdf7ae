from __future__ import annotations

import pytest

from reptrt.engines.build.tensorrt_errors import find_remedy, first_reason


def test_source_positions_and_noise_are_left_out():
    messages = [
        "IBuilder::buildSerializedNetwork: Error Code 1: Cuda Runtime (no GPU)",
        "[builder.cpp::build::90] Error Code 4: Internal Error (No kernel. In build at x.cpp:90)",
    ]
    assert first_reason(messages) == "Internal Error (No kernel.)"
    assert first_reason(["Assertion failed: (a == b): sizes differ"]) == "sizes differ"
    assert first_reason([]) == "no reason given"


@pytest.mark.parametrize(
    ("message", "remedy"),
    [
        ("Non-zero zero point is not supported. Input zeroPoint: z", "reptrt lint FILE.onnx --fix REPAIRED.onnx"),
        ("input has type Int32 but must have type FP8, Int8", "reptrt lint"),
        ("Scale coefficients must all be positive", "vanished in FP16"),
        ("input and kernel must be of same type", "one type (`precision`)"),
        ("Could not find any implementation for node conv1 + relu", "keep_float"),
        ("Requested amount of GPU memory could not be allocated: out of memory", "`max_batch`"),
        ("[network] has dynamic or shape inputs, but no optimization profile", "usual and largest"),
        ("CUDA initialization failure with error: 35", "reptrt doctor"),
        ("The engine plan file is not compatible with this version of TensorRT, expecting library "
         "version 10.3.0 got 11.4.0, please rebuild.", "build it again here"),
        ("The engine plan file is generated on an incompatible device, expecting compute 8.7 got "
         "compute 8.9, please rebuild.", "build it again here"),
        ("Serialization assertion magicTagRead == kMAGIC_TAG failed.Magic tag does not match",
         "build it again here"),
        ("No importer registered for op: Foo", "no such operator"),
        ("plugin != nullptr: ROIAlign plugin was not found in the plugin registry!",
         "a target of classic TensorRT"),
        ('(antialias == 0) && "Antialiasing is not supported currently."', "without antialiasing"),
        ("This version of TensorRT doesn't support mode than 1 outputs for MaxPool nodes!",
         "does not say where its largest values are"),
    ],
)  # fmt: skip
def test_a_known_refusal_says_what_to_do(message, remedy):
    assert remedy in find_remedy(message)
    reason = first_reason([message])
    assert "\n" not in reason
    assert remedy in reason


def test_an_unknown_refusal_is_passed_on():
    assert first_reason(["Something new happened"]) == "Something new happened"
