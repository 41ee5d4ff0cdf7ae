"""YAML files: what may be in them."""

from __future__ import annotations

import yaml
from hypothesis import strategies as st

from tests.hostile.border import json_like
from tests.hostile.strategies import NAMES, damaged, nested

RECIPE: dict[str, object] = {
    "model": "x", "seed": 0, "weights": "w.pt", "mean": [0, 0, 0], "keep_float": ["a", "b"],
    "max_memory": "1GiB", "image_size": [32, 32], "reconstruction": {"steps": 3}, "max_drop": 1.0,
}  # fmt: skip
BASELINES: dict[str, object] = {
    "a": {"recipe": {"model": "x", "seed": 0}, "accuracy": {"value": 80.0, "tolerance": 1.0},
          "kernels": {"tensorrt_rtx 1.7": {"value": 3, "tolerance": 0}}},
}  # fmt: skip
SWEEP: dict[str, object] = {
    "base": {"data": "images", "num_samples": 16, "seed": 1, "weights": "w.pt"},
    "grid": {"model": ["repvgg_a0", "net.onnx"], "bits": [8, 6], "target": "cpu",
             "calibrator": [{"calibrator": "minmax", "mean": [0, 0, 0]}, "mae"]},
    "include": [{"model": "repvgg_a1", "calibrator": "mae", "target": "cpu"}],
    "exclude": [{"bits": 6, "calibrator": "mae"}],
    "resources": {"cpus": 1, "gpus": 0.5, "memory": "2GiB", "retries": 1, "hours": 2},
    "price_per_hour": 1.5,
}  # fmt: skip
_DEEPEST = 600  # PyYAML takes half a second for 2,000 levels
_ODD = (
    "2026-13-45", "!!int abc", "!!bool maybe", "9" * 5000, '"\\ud800"', "!!python/none x", "*a", "&a [*a]",
    "{<<: 3}", "? [1]", "0x", "1e999", ".nan", "'", "!!binary x", "!!binary eA==", "!!timestamp x", '"\\0"',
    "12:30:45", "<<", "=", "!!set {a}", "!!omap [a]", "2001-12-14t21:59:43.10-05:00", "{!!binary eA==: 1}",
    "{1: 2}", "{null: 1}", "[{? 1.5: 2}]",
)  # fmt: skip


@st.composite
def yaml_files(draw: st.DrawFn, like: dict[str, object]) -> bytes:
    """YAML like `like`: changed, damaged, nested deep, with odd values, or of endless aliases."""
    text, first = yaml.safe_dump(like), next(iter(like))
    kind = draw(st.sampled_from(["lines", "lines", "json", "json", "damaged", "nested", "aliases"]))
    if kind == "damaged":
        return draw(damaged(text.encode()))
    if kind == "nested":
        return f"{first}: ".encode() + draw(nested(_DEEPEST)).encode()
    if kind == "json":
        return draw(json_like(like, _DEEPEST))
    if kind == "aliases":
        levels = draw(st.integers(1, 9))
        rows = [f"{first}:", "- &a0 [x, x, x, x, x, x, x, x, x, x]"]
        rows += [f"- &a{k} [{','.join([f'*a{k - 1}'] * 10)}]" for k in range(1, levels)]
        return "\n".join(rows).encode()
    keys = st.one_of(st.sampled_from(list(like)), NAMES)
    added = draw(st.lists(st.tuples(keys, st.sampled_from(_ODD)), max_size=3))
    kept = text if draw(st.booleans()) else ""
    lines = kept + "".join(f"{key}: {value}\n" for key, value in added)
    return lines.encode("utf-8", "surrogatepass")
