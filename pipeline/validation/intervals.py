"""How far a measured accuracy may be from the true one: 95 % confidence intervals, in shares of 0..1.

- A share of images: E. B. Wilson, J. Am. Stat. Assoc. 22 (1927) 209, the score interval.
- The difference of two shares on the same images: T. Tango, Stat. Med. 17 (1998) 891, the score
  interval for paired data. Where the models never differ it still has a width, z² / (n + z²).
- Anything else, such as mAP: B. Efron, the percentile bootstrap over images.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054
"""Of the normal distribution, 95 % lie within this many standard deviations."""
RESAMPLES = 400
FEWEST_RESAMPLED = 50
"""With fewer images a bootstrap interval is too narrow."""
_STEPS = 60
_MOST_IMAGES = 10_000_000


class Ends(NamedTuple):
    """Where the true value lies with 95 % confidence."""

    low: float
    high: float


def share_interval(hits: float, count: float) -> Ends:
    """Wilson's interval of a share, of which `hits` of `count` were seen."""
    share, spread = hits / count, Z * Z / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(spread * (share * (1 - share) + spread / 4)) / (1 + spread)
    return Ends(max(0.0, middle - half), min(1.0, middle + half))


def paired_drop_interval(lost: float, gained: float, count: float) -> Ends:
    """Tango's interval of a drop in accuracy, `(lost - gained) / count`.

    Args:
        lost: images that the first model alone gets right.
        gained: images that the second model alone gets right.
        count: all images.
    """
    drop = (lost - gained) / count
    high = _bisect(lambda at: _tango(lost, gained, count, at) > -Z, drop, 1.0)
    low = -_bisect(lambda at: _tango(gained, lost, count, at) > -Z, -drop, 1.0)
    return Ends(low, high)


def resampled_intervals(
    measure: Callable[[NDArray[np.int64]], Sequence[NDArray[np.float64]]], count: int
) -> list[Ends]:
    """Bootstrap interval of each value of `measure`.

    The seed is fixed: equal images and outputs give equal intervals.

    Args:
        measure: gets samples of the images, drawn with replacement [samples, count]; gives each of its
            values for every sample [samples].
        count: all images.
    """
    values = measure(np.random.default_rng(0).integers(0, count, (RESAMPLES, count)))
    ends = np.quantile(np.array(values, dtype=np.float64), [0.025, 0.975], axis=1)
    return [Ends(float(low), float(high)) for low, high in ends.T]


def images_for(is_decided: Callable[[float], bool], count: int) -> int | None:
    """Least number of images, `count` or more, for which `is_decided`; None where no number is.

    `is_decided` must stay true once it is.
    """
    few, many = count, max(count, 1)
    while not is_decided(many):
        few, many = many, 2 * many
        if many > _MOST_IMAGES:
            return None
    while many - few > max(1, few // 100):  # to 1 % exactly: it is an estimate
        middle = (few + many) // 2
        few, many = (few, middle) if is_decided(middle) else (middle, many)
    return many


def chance_agreement(
    predicted: Sequence[int] | NDArray[np.int64], labels: NDArray[np.int64]
) -> float:
    """Share of images that predictions of these frequencies get right on labels in another order.

    J. Cohen, Educ. Psychol. Meas. 20 (1960) 37: what a constant answer or shuffled labels reach.
    """
    count = len(labels)
    classes, places = np.unique(np.concatenate([predicted, labels]), return_inverse=True)
    of_predicted, of_labels = (
        np.bincount(part, minlength=len(classes)) / count for part in np.split(places, [count])
    )
    return float(of_predicted @ of_labels)


def _tango(lost: float, gained: float, count: float, drop: float) -> float:
    """Score statistic of the hypothesis that the true drop is `drop`; falls from drop to drop."""
    a = 2 * count
    b = (2 * count - lost + gained) * drop - lost - gained
    c = -gained * drop * (1 - drop)
    gain_rate = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)
    variance = count * (2 * gain_rate + drop * (1 - drop))
    distance = lost - gained - count * drop
    return distance / math.sqrt(variance) if variance > 0 else math.copysign(math.inf, distance)


def _bisect(is_inside: Callable[[float], bool], inside: float, outside: float) -> float:
    """Where `is_inside` turns false between `inside` and `outside`."""
    for _ in range(_STEPS):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if is_inside(middle) else (inside, middle)
    return inside
