"""All exports of a process read PyTorch's table of operators once."""

from __future__ import annotations

from torch.onnx._internal.exporter import _registration

from reptrt.pipeline.export.torchlib import share_torchlib


def test_the_table_is_read_once() -> None:
    share_torchlib()
    apis = _registration.onnxscript_apis
    assert apis.get_torchlib_ops() is apis.get_torchlib_ops()


def test_a_pytorch_that_keeps_its_table_elsewhere_is_left_alone() -> None:
    class Apis:
        pass

    kept, _registration.onnxscript_apis = _registration.onnxscript_apis, Apis()
    try:
        share_torchlib.__wrapped__()
        assert not vars(_registration.onnxscript_apis)
    finally:
        _registration.onnxscript_apis = kept
