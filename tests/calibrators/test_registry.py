from __future__ import annotations

import pytest
from torch import fx

from calibrators.base import Calibrator
from calibrators.registry import (
    UnknownCalibratorError,
    choose_calibrator,
    create_calibrator,
    list_calibrators,
)
from models.fuse import reparameterize
from tests.tiny_networks import NETWORKS


def test_every_calibrator_is_listed_with_a_summary() -> None:
    known = list_calibrators()
    assert {"repapq", "brecq", "qdrop", "best", "minmax", "entropy", "mae"} <= known.keys()
    for name, calibrator in known.items():
        assert issubclass(calibrator, Calibrator)
        assert calibrator.name == name
        assert calibrator.summary
        assert "\n" not in calibrator.summary


def test_a_calibrator_is_created_by_its_name() -> None:
    assert all(create_calibrator(name).name == name for name in list_calibrators())


def test_an_unknown_name_lists_the_legal_ones_and_the_nearest() -> None:
    with pytest.raises(UnknownCalibratorError) as caught:
        create_calibrator("minmx")
    message = str(caught.value)
    assert "did you mean 'minmax'?" in message
    assert all(name in message for name in list_calibrators())
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_a_name_without_a_neighbour_gets_no_guess() -> None:
    with pytest.raises(UnknownCalibratorError) as caught:
        create_calibrator("zzzzzz")
    assert "did you mean" not in str(caught.value)


@pytest.mark.parametrize("is_fused", [False, True])
def test_auto_learns_a_reparameterized_network_in_either_form(is_fused: bool) -> None:
    network = NETWORKS["reparameterized"]()
    assert choose_calibrator("auto", reparameterize(network) if is_fused else network) == "repapq"


@pytest.mark.parametrize("name", ["vit", "swin"])
@pytest.mark.parametrize(("bits", "method"), [(8, "repq-vit"), (6, "repquant"), (4, "repquant")])
def test_auto_knows_transformers_and_learns_below_8_bits(name: str, bits: int, method: str) -> None:
    assert choose_calibrator("auto", NETWORKS[name](), bits) == method


@pytest.mark.parametrize("name", ["plain", "residual"])
def test_auto_takes_the_best_baseline_for_any_other_network(name: str) -> None:
    assert choose_calibrator("auto", NETWORKS[name]()) == "best"


def test_auto_learns_a_graph_from_a_file_whose_blocks_nobody_knows() -> None:
    assert choose_calibrator("auto", fx.symbolic_trace(NETWORKS["plain"]())) == "repapq"


def test_a_name_that_was_given_is_kept() -> None:
    assert choose_calibrator("mae", NETWORKS["reparameterized"]()) == "mae"
