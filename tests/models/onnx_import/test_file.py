"""Which files are refused, before any library computes with them, and in which words."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from reptrt.models.onnx_import.data import OnnxFileError
from reptrt.models.onnx_import.file import read_onnx
from reptrt.models.onnx_import.importer import import_onnx
from tests.hostile.graphs import nested_functions
from tests.models.onnx_import.test_islands import weight
from tests.onnx_files import Plain, from_text, seeded, write_onnx
from tests.onnx_fuzzing import hostile_files

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def _error(path: Path) -> str:
    with pytest.raises(OnnxFileError) as caught:
        read_onnx(path)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    return str(caught.value)


def _model(tmp_path: Path, signature: str, body: str = "y = Relu(x)") -> Path:
    return from_text(
        f"{HEAD} net ({signature}) => (float[N,3,8,8] y) {{ {body} }}", tmp_path / "m.onnx"
    )


def test_functions_are_counted_before_they_are_unfolded(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(nested_functions(1000, calls=1), path)
    assert "1000 deep" in _error(path)
    onnx.save(nested_functions(40), path)
    assert "unfold to more than 1000000 operators" in _error(path)


def test_what_is_no_onnx_file_is_refused(tmp_path: Path) -> None:
    assert "no such file" in _error(tmp_path / "absent.onnx")
    for content in (b"", b"not a model", b"\x08\x07"):
        (tmp_path / "m.onnx").write_bytes(content)
        assert "is not an ONNX file" in _error(tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("signature", "expected"),
    [
        ("complex64[N,3,8,8] x", "is COMPLEX64; it must be a float, an integer"),
        ("float[N,3,1000000,1000000] x", "which is too large"),
    ],
)
def test_inputs_that_no_network_takes_are_named(
    tmp_path: Path, signature: str, expected: str
) -> None:
    assert expected in _error(_model(tmp_path, signature))


@pytest.mark.parametrize(
    ("signature", "batched", "batch"),
    [
        ("float[N,3,8,8] x, float[N,4] boxes", (True, True), None),
        ("float[N,3,8,8] x, float[1] scale", (True, False), None),
        ("float[2,3,8,8] x, float[2,4] boxes, float[7] anchors", (True, True, False), 2),
        ("float[12,N,8] x", (False,), 1),  # a sequence in front of the batch
        ("bool[N,10] x", (True,), None),
    ],
)
def test_first_axes_that_count_samples_are_told_by_their_sides(
    tmp_path: Path, signature: str, batched: tuple[bool, ...], batch: int | None
) -> None:
    file = read_onnx(_model(tmp_path, signature, "y = Identity(x)"))
    assert tuple(one.batched for one in file.inputs) == batched
    assert file.batch == batch
    assert not file.is_of_one_image


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("y = RandomNormalLike(x)", "draws random numbers"),
        ("y = com.microsoft.nchwc.ReorderInput(x)", "save it with ORT_ENABLE_EXTENDED"),
        ("y = Add(x, w)", "Add (node 0) reads 'w', which nothing before it makes"),
    ],
)
def test_operators_that_no_import_can_mend_are_named(
    tmp_path: Path, body: str, expected: str
) -> None:
    assert expected in _error(_model(tmp_path, "float[N,3,8,8] x", body))


def test_size_and_layout_are_read_from_the_input(tmp_path: Path) -> None:
    file = read_onnx(_model(tmp_path, "float[N,H,W,3] x"))
    assert (file.channels_last, file.batch) == (True, None)
    assert file.image_size((10, 20)) == (10, 20)
    with pytest.raises(OnnxFileError, match="leaves the size of its images open"):
        file.image_size(None)
    fixed = read_onnx(_model(tmp_path, "float[1,3,8,8] x"))
    assert (fixed.channels_last, fixed.batch, fixed.image_size(None)) == (False, 1, (8, 8))
    with pytest.raises(OnnxFileError, match="its input is 8x8 pixels"):
        fixed.image_size((9, 9))


@pytest.mark.parametrize(
    ("signature", "channels_last", "channels", "sides"),
    [
        ("float[N,1,28,30] x", False, 1, (28, 30)),
        ("float[1,28,30,1] x", True, 1, (28, 30)),
        ("uint8[N,24,32,3] x", True, 3, (24, 32)),
        ("float[1,12,64,64] x", False, 12, (64, 64)),
        ("float[1,64,64,12] x", True, 12, (64, 64)),
        ("float[N,3,H,W] x", False, 3, (None, None)),
    ],
)
def test_grey_many_channel_and_channels_last_images_are_told_by_their_sides(
    tmp_path: Path,
    signature: str,
    channels_last: bool,
    channels: int,
    sides: tuple[int | None, int | None],
) -> None:
    file = read_onnx(_model(tmp_path, signature, "y = Identity(x)"))
    assert (file.channels_last, file.channels) == (channels_last, channels)
    assert (file.height, file.width) == sides
    assert (file.raw_type is not None) == signature.startswith("uint8")


def test_minus_one_is_an_open_side_as_paddle_writes_it(tmp_path: Path) -> None:
    path = _model(tmp_path, "float[1,3,8,8] x")
    model = onnx.load(path)
    for side in (0, 2, 3):
        model.graph.input[0].type.tensor_type.shape.dim[side].dim_value = -1
    onnx.save(model, path)
    file = read_onnx(path)
    assert (file.batch, file.height, file.width) == (None, None, None)


def test_an_output_without_a_shape_is_no_fault(tmp_path: Path) -> None:
    path = _model(tmp_path, "float[N,3,8,8] x")
    model = onnx.load(path)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    assert import_onnx(read_onnx(path), (8, 8)).outputs == ("y",)


def test_an_operator_that_onnx_runtime_lacks_is_named_with_its_domain(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["": 17, "com.acme": 1]>
        net (float[N,3,8,8] x) => (float[N,3,8,8] y) { [odd] y = com.acme.Magic(x) }"""
    error = _error(from_text(text, tmp_path / "m.onnx"))
    assert "Magic 'odd' is an operator of 'com.acme', which ONNX Runtime does not have" in error


def test_where_to_cut_behind_such_an_operator_is_said(tmp_path: Path) -> None:
    text = f"""<ir_version: 8, opset_import: ["": 17, "com.acme": 1]> net (uint8[n] x) => (float y)
        <{weight("w", 4, 3, 3, 3)}> {{ d = com.acme.Decode(x) g = MatMul(d, d) f = Cast<to = 1>(g) c = Conv(f, w) y = Relu(c) }}"""
    assert "cut the model behind it, at 'f'" in _error(from_text(text, tmp_path / "m.onnx"))


def test_an_input_without_a_shape_is_named(tmp_path: Path) -> None:
    path = _model(tmp_path, "float[N,3,8,8] x")
    model = onnx.load(path)
    model.graph.input[0].type.tensor_type.ClearField("shape")
    onnx.save(model, path)
    assert "its input 'x' has no shape" in _error(path)


def _with_external_weight(tmp_path: Path, location: str, length: int) -> Path:
    model = onnx.load(write_onnx(seeded(Plain), tmp_path / "m.onnx"))
    tensor = next(t for t in model.graph.initializer if t.name == "fc.weight")
    values = numpy_helper.to_array(tensor)
    (tmp_path / "inside").mkdir(exist_ok=True)
    (tmp_path / "inside" / "fc.bin").write_bytes(values.tobytes())
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    for key, value in {"location": location, "length": str(length)}.items():
        tensor.external_data.add(key=key, value=value)
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    return tmp_path / "m.onnx"


def test_external_data_is_read_from_the_models_folder_and_counts_as_the_model(
    tmp_path: Path,
) -> None:
    file = read_onnx(_with_external_weight(tmp_path, "inside/fc.bin", 160))
    network = import_onnx(file, (32, 32)).module
    expected = np.fromfile(tmp_path / "inside" / "fc.bin", np.float32).reshape(5, 8)
    assert np.array_equal(network.get_parameter("fc.weight").numpy(), expected)
    (tmp_path / "inside" / "fc.bin").write_bytes(expected[::-1].tobytes())
    assert read_onnx(file.path).sha256 != file.sha256


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("../m.bin", "must lie in the folder"), ("/etc/passwd", "must lie in the folder"),
        ("inside/link.bin", "leads out of the model's folder"), ("no.bin", "is not beside the model"),
        ("inside/short.bin", "needs 160 bytes"),
    ],
)  # fmt: skip
def test_external_data_elsewhere_or_cut_off_is_refused(
    tmp_path: Path, location: str, expected: str
) -> None:
    path = _with_external_weight(tmp_path, location, 160)
    (tmp_path / "inside" / "link.bin").symlink_to("/etc/hostname")
    (tmp_path / "inside" / "short.bin").write_bytes(bytes(159))
    assert expected in _error(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    model = onnx.load(write_onnx(seeded(Plain), tmp_path / "m.onnx"))
    tensor = next(t for t in model.graph.initializer if t.name == "fc.weight")
    tensor.raw_data = np.full((5, 8), np.nan, np.float32).tobytes()
    onnx.save(model, tmp_path / "m.onnx")
    assert "'fc.weight' holds NaN" in _error(tmp_path / "m.onnx")


def test_hostile_files_give_one_line_or_a_network(tmp_path: Path) -> None:
    refused: list[tuple[str, str]] = []
    imported = 0
    (tmp_path / "models").mkdir()
    for what, path in hostile_files(tmp_path / "models", range(200)):
        try:
            file = read_onnx(path)
            import_onnx(file, file.image_size(None))
            imported += 1
        except OnnxFileError as error:
            refused.append((what, str(error)))
    assert [pair for pair in refused if "\n" in pair[1] or len(pair[1]) > 600] == []
    assert len(refused) > 150
    assert imported > 5  # the mutations are not all fatal
