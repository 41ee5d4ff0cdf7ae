"""YOLOv6 in the zoo: every name has a network, a release file and a licence."""

from __future__ import annotations

import pytest

from reptrt.models.registry import find_model, list_models
from reptrt.models.yolov6.network import CONFIGS
from reptrt.models.yolov6.zoo import ZOO


def test_every_configuration_has_a_name_and_every_name_is_listed() -> None:
    assert ZOO.keys() == CONFIGS.keys()
    assert ZOO.keys() <= {spec.name for spec in list_models()}


@pytest.mark.parametrize(
    ("name", "tag", "file"),
    [
        ("yolov6s", "0.4.0", "yolov6s.pt"),
        ("yolov6l", "0.4.0", "yolov6l.pt"),
        ("yolov6s_v2", "0.2.0", "yolov6s.pt"),
        ("yolov6t", "0.2.0", "yolov6t.pt"),
        ("yolov6l_relu", "0.2.0", "yolov6l_relu.pt"),
        ("yolov6m_base", "0.3.0", "yolov6m_base.pt"),
    ],
)
def test_weights_are_the_files_that_the_authors_link_to(name: str, tag: str, file: str) -> None:
    weights = find_model(name).weights
    assert weights is not None
    assert weights.url == f"https://github.com/meituan/YOLOv6/releases/download/{tag}/{file}"
    assert weights.licence == "GPL-3.0"


def test_no_two_release_files_share_a_place_in_the_cache() -> None:
    names = [spec.weights.filename for spec in ZOO.values() if spec.weights is not None]
    assert len(set(names)) == len(names) == len(ZOO) - 1


def test_a_detector_is_built_with_the_asked_number_of_classes() -> None:
    assert find_model("yolov6n_demo").build(5, (64, 64)).num_classes == 5
    assert find_model("yolov6n_demo").build(None, (64, 64)).num_classes == 8
