from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from reptrt.engines.artifacts import write_json
from reptrt.engines.cost.estimate import CostError
from reptrt.engines.cost.sources import Layers, read_layers
from reptrt.engines.data_sheet import A100, RTX_4080, T4
from reptrt.engines.inspection.fusion import fusion_report
from reptrt.engines.inspection.kernels import LayerListError, parse_kernels
from reptrt.engines.target import TARGETS

RTX_LOG = Path(__file__).parents[1] / "data" / "rtx_1_7_1_layers.txt"
GRAPH = {
    "Layers": [
        {
            "Name": "pool", "LayerType": "CaskPooling",
            "Inputs": [{"Name": "x", "Dimensions": [4, 8, 6, 6], "Format/Datatype": "FP16"}],
            "Outputs": [{"Name": "y", "Dimensions": [4, 8, 3, 3], "Format/Datatype": "FP16"}],
        }
    ]
}  # fmt: skip


def read(path: Path) -> Layers:
    return read_layers(path, None, A100)


def test_a_layer_list_of_the_inspector_has_the_batch_it_was_built_for(tmp_path):
    path = tmp_path / "graph.json"
    path.write_text(json.dumps(GRAPH))
    layers = read(path)
    assert (len(layers.kernels), layers.batch) == (1, 4)
    assert layers.at_batch(8).kernels[0].outputs[0].dims == (8, 8, 3, 3)
    assert layers.at_batch(4) is layers


def test_the_folder_of_a_run_gives_the_kernels_that_were_built(tmp_path, mixed_onnx):
    kernels = parse_kernels(RTX_LOG.read_text())
    report = fusion_report(kernels, mixed_onnx(half=True), "tensorrt_rtx 1.7")
    write_json(report, tmp_path / "fusion.json")
    layers = read(tmp_path)
    assert layers.kernels == kernels
    assert layers.origin == "built with tensorrt_rtx 1.7"


def test_a_run_for_a_range_of_batches_gives_the_kernels_of_its_model(tmp_path, mixed_onnx):
    path = mixed_onnx(half=True, batch="N")
    path.rename(tmp_path / "model.trt.onnx")
    kernel = {"name": "k", "kind": "kgen", "inputs": [{"name": "x", "dtype": "Half", "dims": [-1]}]}
    (tmp_path / "fusion.json").write_text(json.dumps({"fused_kernels": [kernel]}))
    assert read(tmp_path).origin.startswith("layers predicted by the fusion rules")
    (tmp_path / "model.trt.onnx").unlink()
    with pytest.raises(CostError, match="build it for one batch"):
        read(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(CostError, match="`reptrt build` writes one"):
        read(tmp_path)


def test_the_message_of_the_rtx_log_is_read_as_it_is(tmp_path):
    path = tmp_path / "layers.txt"
    path.write_text(RTX_LOG.read_text())
    assert read(path).kernels == parse_kernels(RTX_LOG.read_text())


def test_a_model_is_compiled_for_a_target_of_tensorrt_rtx(mixed_onnx):
    pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed here")
    layers = read_layers(mixed_onnx(half=True, batch="N"), TARGETS["rtx-40"], RTX_4080)
    assert layers.batch == 1
    assert layers.origin.startswith("compiled by TensorRT-RTX 1.7")
    assert sum(kernel.is_int8 for kernel in layers.kernels) == 2


def test_a_model_is_predicted_by_rules_for_a_classic_target(mixed_onnx):
    layers = read_layers(mixed_onnx(half=True, batch="N"), TARGETS["server-t4"], T4)
    assert layers.batch == 1
    assert layers.origin.startswith("layers predicted by the fusion rules")
    assert sum(kernel.is_int8 for kernel in layers.kernels) == 2


def test_a_processor_has_no_cost_model(mixed_onnx):
    with pytest.raises(CostError, match="reptrt bench"):
        read_layers(mixed_onnx(), TARGETS["cpu"], A100)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no layer list"), ("{", "no inspector JSON"), ("[" * 100_000, "no layer list"),
        ('{"fused_kernels": 3}', "'fused_kernels' is no list"),
        ('{"fused_kernels": [3]}', "'fused_kernels' is no list"),
        ('{"fused_kernels": [{"name": "k", "inputs": [{"name": 1}]}]}', "no entry of fusion.json"),
        ('{"Layers": [{"Name": "k", "Inputs": [{"Dimensions": "x"}]}]}', "is no shape"),
        ('{"Layers": [{"Name": "k", "Inputs": 5}]}', "layer 'k': 5 is no list of tensors"),
    ],
)  # fmt: skip
def test_a_file_that_is_no_layer_list_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(LayerListError, match=message) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))


@pytest.mark.parametrize(
    "text", ['{"Layers": []}', '{"fused_kernels": []}', '{"fused_kernels": [{"name": "k"}]}']
)
def test_an_empty_list_has_no_cost(tmp_path, text):
    path = tmp_path / "graph.json"
    path.write_text(text)
    with pytest.raises(CostError, match=r"graph\.json: there are no kernels"):
        read(path)


def test_what_is_no_text_or_not_there_is_refused(tmp_path):
    path = tmp_path / "model.engine"
    path.write_bytes(b"\xff\xfe\x00ftrt")
    with pytest.raises(CostError, match="no layer list"):
        read(path)
    with pytest.raises(CostError, match="no such file"):
        read(tmp_path / "none")


@pytest.mark.parametrize(
    "text",
    [
        "Layers:\nName: a, LayerType: conv, Inputs: [" + "{ Name: x, Dimensions: [1]," * 40_000,
        "Layers:\nName: a, LayerType: b, Inputs: [], Metadata: " + "[ONNX Layer: x" * 80_000,
        json.dumps({"Layers": [{"Name": "a", "Metadata": "[ONNX Layer: " * 80_000}]}),
    ],
    ids=["tensors", "layers", "JSON"],
)
def test_a_list_of_beginnings_that_never_end_is_read_in_a_moment(tmp_path, text):
    path = tmp_path / "graph.json"
    path.write_text(text)
    started = time.process_time()
    with pytest.raises(CostError, match="no kernels"):
        read(path)
    assert time.process_time() - started < 10


def test_a_kernel_that_no_gpu_could_run_is_refused(tmp_path):
    path = tmp_path / "graph.json"
    layer = json.loads(json.dumps(GRAPH["Layers"][0]))
    layer["Inputs"][0]["Dimensions"] = [2**31 - 1] * 8
    path.write_text(json.dumps({"Layers": [layer]}))
    with pytest.raises(CostError, match="larger than any"):
        read(path)
    path.write_text("Layers:\nName: a, LayerType: conv, Inputs: [{ Name: x, Dimensions: [" + "9" * 3000 + "],"
                    " Datatype: Int8 }], Outputs: []")  # fmt: skip
    with pytest.raises(LayerListError, match="is no shape"):
        read(path)
