"""A GPU as TensorRT's own profiler describes it: `device_information` of profile.metadata.json."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from reptrt.engines.cost.estimate import CostError
from reptrt.engines.data_sheet import DataSheet, known_sheets
from reptrt.engines.foreign.border import read_json
from reptrt.engines.foreign.limits import MAX_SIDECAR_BYTES

_DOUBLE_DATA_RATE = 2
_KEYS = ("Compute Capability", "SMs", "Compute Clock Rate", "Memory Bus Width", "Memory Clock Rate")
_DEFAULT_L2_MB = 6.0
_LEAST, _MOST = 1e-3, 1e6


def read_device_info(path: Path) -> DataSheet:
    """Return the data sheet of the GPU that `path` names.

    What the file does not say, the size of the L2 cache, is that of the known GPU of its name, or of
    the known one with the same compute capability.

    Raises:
        CostError: it is no such file.
    """
    content = read_json(path, MAX_SIDECAR_BYTES, CostError)
    info = content.get("device_information") if isinstance(content, dict) else None
    if not isinstance(info, dict):
        raise CostError(
            f"{path}: it has no 'device_information'; TREx's profiling script writes one"
        )
    capability, sms, clock, bus, memory_clock = (_positive(info, key, path) for key in _KEYS)
    if sms < 1:
        raise CostError(f"{path}: 'device_information' has no 'SMs' of at least 1")
    name = str(info.get("Selected Device") or "GPU")
    like = _like(name, (int(capability), round(10 * (capability % 1))))
    return replace(
        like,
        gpu=name,
        compute_capability=(int(capability), round(10 * (capability % 1))),
        sms=max(1, round(sms)),
        clock_ghz=clock,
        bandwidth_gbs=bus / 8 * memory_clock * _DOUBLE_DATA_RATE,
        source=str(path),
    )


def _like(name: str, capability: tuple[int, int]) -> DataSheet:
    """The known GPU nearest to this one, for what the file does not say."""
    words = name.upper().replace("-", " ").split()
    sheets = [one for one in known_sheets() if one.compute_capability == capability]
    named = [one for one in sheets if one.gpu.split()[0].upper() in words]
    if named:
        return named[0]
    l2_mb = max((one.l2_mb for one in sheets), default=_DEFAULT_L2_MB)
    return DataSheet(name, capability, 1, 1.0, 1.0, l2_mb)


def _positive(info: dict[str, object], key: str, path: Path) -> float:
    value = info.get(key)
    if type(value) not in (int, float) or not _LEAST < value < _MOST:  # type: ignore[operator]
        raise CostError(f"{path}: 'device_information' has no '{key}' above 0")
    return float(value)  # type: ignore[arg-type]
