"""95 % intervals from counts alone, which is all that a masked sum leaves. Each image counts as one independent draw.

Where patients have several images the truth is wider: nobody outside of a hospital knows which images belong together.
"""

import math

Z = 1.959963984540054  # two-sided 95 % of the normal distribution
_HALVINGS = 60
Interval = tuple[float, float]


def wilson(share: float, count: int) -> Interval:
    """Of a share of `count` draws, 1 or more (Wilson 1927, "Probable Inference")."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * math.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return max(0.0, middle - half), min(1.0, middle + half)


def auroc(area: float, positives: int, negatives: int) -> Interval:
    """Of an AUROC of so many images of each kind, 1 or more: Newcombe's fifth method.

    Newcombe 2006, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic. Part 2": as
    Wilson's does for a share, it takes the variance (Hanley and McNeil 1982, with both sizes' mean in it) at the end of
    the interval and not at the estimate, so that an AUROC of 1 has an interval too.
    """
    return _end(area, 0.0, positives, negatives), _end(area, 1.0, positives, negatives)


def _end(area: float, limit: float, positives: int, negatives: int) -> float:
    """The place between `area` and `limit` that lies 1.96 of its own standard errors from `area`, by halving."""
    near, far = area, limit
    for _ in range(_HALVINGS):
        middle = (near + far) / 2
        if abs(middle - area) < Z * math.sqrt(_variance(middle, positives, negatives)):
            near = middle
        else:
            far = middle
    return near


def _variance(area: float, positives: int, negatives: int) -> float:
    most = (positives + negatives) / 2 - 1
    spread = 1 + most * ((1 - area) / (2 - area) + area / (1 + area))
    return area * (1 - area) * spread / (positives * negatives)
