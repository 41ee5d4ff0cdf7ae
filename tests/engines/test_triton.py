"""The repository that Triton gets, and its config.pbtxt read with Triton's own schema."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from reptrt.engines.report_schema import Verdict
from reptrt.engines.tensor_spec import Tensor
from reptrt.engines.triton import (
    RepositoryError,
    ServedModel,
    add_version,
    config_text,
    list_versions,
)


@pytest.fixture
def model(tmp_path: Path) -> ServedModel:
    engine = tmp_path / "model.engine"
    engine.write_bytes(b"an engine")
    return ServedModel(
        name="net",
        file=engine,
        is_engine=True,
        inputs=(Tensor("images", "float32", (-1, 3, 224, 160)),),
        outputs=(Tensor("logits", "float32", (-1, 3)),),
        max_batch=6,
        classes=("cat", 'the "dog"', "crème"),
        labelled_output="logits",
    )


@pytest.fixture(scope="session")
def schema() -> ModuleType:
    """Triton's model_config.proto; the package around it would import gRPC."""
    pytest.importorskip("google.protobuf", reason="protobuf is not installed here")
    package = importlib.util.find_spec("tritonclient")
    if package is None or not package.submodule_search_locations:
        pytest.skip("tritonclient is not installed here")
    path = Path(package.submodule_search_locations[0], "grpc", "model_config_pb2.py")
    spec = importlib.util.spec_from_file_location("model_config_pb2", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def parse(schema: ModuleType) -> Callable[[ServedModel], Any]:
    from google.protobuf import text_format

    return lambda model: text_format.Parse(config_text(model), schema.ModelConfig())


def test_an_engine_with_a_dynamic_batch_is_batched_and_warmed_up(model, parse, schema):
    config = parse(replace(model, instances=2))
    assert (config.name, config.platform, config.max_batch_size) == ("net", "tensorrt_plan", 6)
    (images,), (logits,) = config.input, config.output
    assert (images.name, list(images.dims)) == ("images", [3, 224, 160])
    assert images.data_type == schema.DataType.Value("TYPE_FP32")
    assert (logits.name, list(logits.dims), logits.label_filename) == ("logits", [3], "labels.txt")
    assert list(config.dynamic_batching.preferred_batch_size) == [2, 4, 6]
    assert config.dynamic_batching.max_queue_delay_microseconds == 100
    (group,) = config.instance_group
    assert (group.kind, group.count) == (schema.ModelInstanceGroup.Kind.Value("KIND_GPU"), 2)
    assert [warm.batch_size for warm in config.model_warmup] == [1, 6]
    for warm in config.model_warmup:
        assert list(warm.inputs["images"].dims) == [3, 224, 160]
        assert warm.inputs["images"].random_data


def test_a_fixed_batch_is_a_dimension_like_the_others(model, parse):
    fixed = replace(
        model,
        inputs=(Tensor("images", "float16", (4, 3, 8, 8)),),
        outputs=(Tensor("logits", "int64", (4, 3)),),
    )
    config = parse(fixed)
    assert config.max_batch_size == 0
    assert not config.HasField("dynamic_batching")
    assert list(config.input[0].dims) == [4, 3, 8, 8]
    assert list(config.output[0].dims) == [4, 3]
    assert [warm.batch_size for warm in config.model_warmup] == [1]


def test_the_largest_batch_of_one_leaves_nothing_to_batch(model, parse):
    config = parse(replace(model, max_batch=1))
    assert config.max_batch_size == 1
    assert not config.HasField("dynamic_batching")


def test_an_onnx_file_runs_on_the_cpu_and_keeps_its_name(model, parse, schema, tmp_path):
    onnx = replace(model, is_engine=False)
    config = parse(onnx)
    assert config.platform == "onnxruntime_onnx"
    assert config.instance_group[0].kind == schema.ModelInstanceGroup.Kind.Value("KIND_CPU")
    assert (add_version(tmp_path / "models", onnx) / "model.onnx").read_bytes() == b"an engine"


def test_several_outputs_are_listed_in_order_and_none_is_labelled(model, parse):
    maps = tuple(Tensor(f"p{level}", "float32", (-1, 7, 4, 4)) for level in (3, 4, 5))
    config = parse(replace(model, outputs=maps, labelled_output=None))
    assert [(one.name, one.label_filename) for one in config.output] == [
        ("p3", ""), ("p4", ""), ("p5", ""),
    ]  # fmt: skip


def test_a_type_that_triton_has_not_is_refused(model):
    with pytest.raises(RepositoryError, match="Triton has no type for complex64"):
        config_text(replace(model, inputs=(Tensor("images", "complex64", (-1, 3)),)))


def test_a_version_is_whole_and_the_next_one_gets_the_next_number(model, tmp_path):
    repository = tmp_path / "models"
    assert add_version(repository, model) == repository / "net" / "1"
    assert (repository / "net" / "1" / "model.plan").read_bytes() == b"an engine"
    labels = (repository / "net" / "labels.txt").read_text(encoding="utf-8")
    assert labels == 'cat\nthe "dog"\ncrème\n'
    assert add_version(repository, model, version=7) == repository / "net" / "7"
    assert add_version(repository, model) == repository / "net" / "8"
    assert list_versions(repository / "net") == [1, 7, 8]
    assert sorted(path.name for path in (repository / "net").iterdir()) == [
        ".lock", "1", "7", "8", "config.pbtxt", "labels.txt",
    ]  # fmt: skip


def test_a_version_that_exists_is_never_overwritten(model, tmp_path):
    add_version(tmp_path, model)
    model.file.write_bytes(b"another engine")
    with pytest.raises(RepositoryError, match=r"net/1: exists; leave `version` out"):
        add_version(tmp_path, model, version=1)
    assert (tmp_path / "net" / "1" / "model.plan").read_bytes() == b"an engine"


def test_a_config_that_was_edited_is_kept_or_nothing_happens(model, tmp_path):
    add_version(tmp_path, model)
    config = tmp_path / "net" / "config.pbtxt"
    edited = config.read_text().replace("count: 1", "count: 3")
    config.write_text(edited)
    with pytest.raises(RepositoryError, match=r"config\.pbtxt: is not what this model needs"):
        add_version(tmp_path, model)
    assert list_versions(tmp_path / "net") == [1]
    add_version(tmp_path, model, keep_config=True)
    assert config.read_text() == edited
    assert list_versions(tmp_path / "net") == [1, 2]


def test_labels_of_other_classes_are_kept_or_nothing_happens(model, tmp_path):
    add_version(tmp_path, model)
    other = replace(model, classes=("dog", "cat", "bird"))
    with pytest.raises(
        RepositoryError, match=r"labels\.txt: names other classes than this model has"
    ):
        add_version(tmp_path, other)
    assert list_versions(tmp_path / "net") == [1]
    labels = (tmp_path / "net" / "labels.txt").read_bytes()
    add_version(tmp_path, other, keep_config=True)
    assert list_versions(tmp_path / "net") == [1, 2]
    assert (tmp_path / "net" / "labels.txt").read_bytes() == labels


@pytest.mark.parametrize("name", ["../net", "a/b", "..", "/net", ""])
def test_a_name_that_is_no_folder_of_the_repository_is_refused(model, tmp_path, name):
    with pytest.raises(RepositoryError, match="must be the name of a folder"):
        add_version(tmp_path / "models", replace(model, name=name))


def test_a_repository_that_is_a_file_is_one_line(model, tmp_path):
    (tmp_path / "models").touch()
    with pytest.raises(RepositoryError, match="cannot be written"):
        add_version(tmp_path / "models", model)


def test_a_copy_that_fails_leaves_no_version(model, tmp_path):
    model.file.unlink()
    with pytest.raises(OSError, match=r"model\.engine"):
        add_version(tmp_path, model)
    assert list_versions(tmp_path / "net") == []
    assert [path.name for path in (tmp_path / "net").iterdir() if "partial" in path.name] == []


def test_what_a_killed_run_left_does_not_get_into_the_next(model, tmp_path):
    partial = tmp_path / "net" / ".1.partial"
    partial.mkdir(parents=True)
    (partial / "model.plan.half").touch()
    folder = add_version(tmp_path, model)
    assert sorted(path.name for path in folder.iterdir()) == ["model.plan", "verdict.json"]


def test_each_version_says_how_good_it_is_and_the_rest_of_the_config_stays(model, tmp_path):
    good, bad = Verdict("passed", "loses nothing"), Verdict("failed", 'a "drop"', forced=True)
    add_version(tmp_path, replace(model, verdict=good))
    text = (tmp_path / "net" / "config.pbtxt").read_text()
    second = add_version(tmp_path, replace(model, verdict=bad))
    assert (tmp_path / "net" / "config.pbtxt").read_text() == text + (
        'parameters { key: "reptrt.verdict.2" value { string_value: "failed, forced: a \\"drop\\"" } }\n'
    )
    assert json.loads((second / "verdict.json").read_text())["forced"] is True
