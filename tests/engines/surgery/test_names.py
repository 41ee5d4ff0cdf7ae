from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs

from reptrt.engines.surgery.names import Names


def test_a_taken_name_is_never_given_out_again(parse):
    names = Names(gs.import_onnx(parse("g (float[1] x) => (float[1] y) { y = Add(x, w) }", w=1.0)))
    assert [names.fresh(stem) for stem in ("x", "w", "x", "new", "new")] == [
        "x_1",
        "w_1",
        "x_2",
        "new",
        "new_1",
    ]


def test_constants_take_numpy_scalars(parse):
    names = Names(gs.import_onnx(parse("g (float[1] x) => (float[1] y) { y = Relu(x) }")))
    constant = names.constant("s", np.float32(2) * np.ones(()))
    assert (constant.name, constant.values.shape, float(constant.values)) == ("s", (), 2.0)
