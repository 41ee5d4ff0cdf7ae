from __future__ import annotations

import json
from pathlib import Path

import pytest

from reptrt.engines.cost.choose_sheet import choose_sheet
from reptrt.engines.cost.device_info import read_device_info
from reptrt.engines.cost.estimate import CostError
from reptrt.engines.data_sheet import A100
from reptrt.engines.target import TARGETS

INFO = {
    "Selected Device": "NVIDIA A100-PCIE-40GB", "Compute Capability": 8.0, "SMs": 108.0,
    "Compute Clock Rate": 1.41, "Memory Bus Width": 5120.0, "Memory Clock Rate": 1.215,
}  # fmt: skip


def write(path: Path, **changes: object) -> Path:
    path.write_text(json.dumps({"device_information": {**INFO, **changes}}))
    return path


def test_a_profile_describes_its_gpu(tmp_path):
    sheet = read_device_info(write(tmp_path / "p.json"))
    assert (sheet.gpu, sheet.compute_capability) == ("NVIDIA A100-PCIE-40GB", (8, 0))
    assert (sheet.sms, sheet.clock_ghz) == (108, 1.41)
    assert sheet.bandwidth_gbs == pytest.approx(5120 / 8 * 1.215 * 2)
    assert sheet.l2_mb == A100.l2_mb  # not in the file
    assert sheet.peak("Int8") == A100.peak("Int8")


def test_a_known_power_limit_is_kept(tmp_path):
    sheet = read_device_info(
        write(tmp_path / "p.json", **{"Selected Device": "Tesla T4", "Compute Capability": 7.5})
    )
    assert sheet.sustained < 1


@pytest.mark.parametrize("name", [None, ""])
def test_a_gpu_without_a_name_is_called_one(tmp_path, name):
    assert read_device_info(write(tmp_path / "p.json", **{"Selected Device": name})).gpu == "GPU"


def test_the_file_wins_over_the_target(tmp_path):
    sheet = choose_sheet(TARGETS["server-t4"], write(tmp_path / "p.json", SMs=100))
    assert sheet.sms == 100


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "not valid JSON"), ("[]", "no 'device_information'"),
        ('{"device_information": 3}', "no 'device_information'"),
        (json.dumps({"device_information": {**INFO, "SMs": "many"}}), "no 'SMs' above 0"),
        (json.dumps({"device_information": {**INFO, "SMs": float("nan")}}), "no 'SMs' above 0"),
        (json.dumps({"device_information": {**INFO, "SMs": -1}}), "no 'SMs' above 0"),
        (json.dumps({"device_information": {**INFO, "SMs": 10**400}}), "no 'SMs' above 0"),
        (json.dumps({"device_information": {**INFO, "SMs": True}}), "no 'SMs' above 0"),
        (json.dumps({"device_information": {**INFO, "SMs": 0.4}}), "no 'SMs' of at least 1"),
    ],
)  # fmt: skip
def test_another_file_is_refused_in_one_line(tmp_path, text, message):
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(CostError, match=message) as caught:
        read_device_info(path)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(CostError, match=r"none\.json"):
        read_device_info(tmp_path / "none.json")


@pytest.mark.parametrize("target", [None, TARGETS["tensorrt"], TARGETS["cpu"]])
def test_without_a_gpu_there_is_a_list_of_those_known(target):
    with pytest.raises(CostError, match="server-t4"):
        choose_sheet(target, None)
