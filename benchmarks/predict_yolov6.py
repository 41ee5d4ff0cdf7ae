"""Predict YOLOv6 on a T4 and compare with the frames per second that its authors publish.

    python benchmarks/predict_yolov6.py [--models yolov6n_v2 ...] [--folder FOLDER]

The layers are those that the fusion rules of classic TensorRT predict (reptrt/engines/fusion_rules), of
the networks with random weights. Published: TensorRT 8.4, 640 x 640, batch 1 and 32 (meituan/YOLOv6).
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path

from reptrt.calibrators.quantized.placement import place_quantizers
from reptrt.calibrators.quantized.quantized_model import insert_quantizers
from reptrt.engines.cost.estimate import EngineCost, estimate_cost
from reptrt.engines.data_sheet import T4
from reptrt.engines.fusion_rules import predict_kernels
from reptrt.engines.surgery import clean
from reptrt.models.card import ModelCard
from reptrt.models.fuse import reparameterize
from reptrt.models.graph import trace
from reptrt.models.registry import find_model
from reptrt.models.spec import Preprocess
from reptrt.pipeline.export.export import export_float, export_qdq

PUBLISHED = {
    "yolov6n_v2": {"fp16": (802, 1234), "int8": (1114, 1828)},
    "yolov6t": {"fp16": (449, 659), "int8": (741, 1167)},
    "yolov6s_v2": {"fp16": (377, 541), "int8": (619, 924)},
    "yolov6n": {"fp16": (779, 1187)},
    "yolov6s": {"fp16": (339, 484)},
    "yolov6m": {"fp16": (175, 226)},
    "yolov6l": {"fp16": (98, 116)},
}
BATCHES = (1, 32)
DETECTION = Preprocess((640, 640), (0.0, 0.0, 0.0), (1.0, 1.0, 1.0))


def write_models(name: str, folder: Path) -> dict[str, Path]:
    """Write the float network in FP16, and where INT8 is published with Q/DQ at every layer, all scales 1."""
    spec = find_model(name)
    paths = {one: folder / f"{name}.{one}.onnx" for one in PUBLISHED[name]}
    if all(path.exists() for path in paths.values()):
        return paths
    module = reparameterize(spec.build(None, (640, 640)).eval())
    graph = trace(module, (640, 640))
    card = ModelCard(
        name, "detection", DETECTION, 80, None,
        ("p3", "p4", "p5"), (8, 16, 32), None,
    )  # fmt: skip
    raw = folder / "raw.onnx"
    export_float(graph, raw, card, precision="fp16")
    clean(raw, paths["fp16"])
    if "int8" in paths:
        placement = place_quantizers(graph.graph, quantize_head=True)
        export_qdq(insert_quantizers(graph, placement), raw, card, precision="fp16")
        clean(raw, paths["int8"])
    return paths


def predict(path: Path, batch: int) -> EngineCost:
    """Cost on a T4 of the layers that the rules predict."""
    kernels = predict_kernels(path, batch=batch, compute_capability=(7, 5), remainder="fp16")
    return estimate_cost(kernels, T4)


def main() -> None:
    """Print one line a model, type and batch, then the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(PUBLISHED))
    parser.add_argument("--folder", type=Path)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        for name in arguments.models:
            paths = write_models(name, folder)
            for at, batch in enumerate(BATCHES):
                times = {}
                for precision, rates in PUBLISHED[name].items():
                    cost = predict(paths[precision], batch)
                    published = 1e3 / rates[at] * batch
                    times[precision] = (cost.milliseconds, published)
                    print(
                        f"{name:11s} {precision} batch {batch:2d}: predicted {cost.milliseconds:7.2f} "
                        f"ms, published {published:7.2f} ms ({cost.milliseconds / published:.2f}); "
                        f"{len(cost.kernels)} kernels, {cost.megabytes:.0f} MB",
                        flush=True,
                    )
                for low, high in itertools.pairwise(times.values()):
                    ratio, published = high[0] / low[0], high[1] / low[1]
                    print(
                        f"{name:11s} INT8 / FP16 batch {batch:2d}: predicted {ratio:.2f}, published "
                        f"{published:.2f} ({ratio / published:.2f})"
                    )


if __name__ == "__main__":
    main()
