"""From an image in the modality's units to the network's input: the same in every hospital, fixed by the plan."""

import numpy as np
from numpy.typing import NDArray

from boundary.plan import Preprocessing

Image = NDArray[np.float32]


def to_input(image: Image, preprocessing: Preprocessing) -> Image:
    """float32 [H, W] in modality units (HU for CT) -> float32 [1, h, w] in [0, 1], (h, w) = `preprocessing.size`.

    Intensities are mapped and clipped first, then the image is resized. Its aspect ratio is kept: it is fitted
    into the size and centred on zeros, the low end of the scale (air on CT). Every pixel counts as square.
    Raises `ValueError` if the image is empty, not two-dimensional, or holds NaN or infinity.
    """
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"an image of shape {image.shape}, not [height, width]")
    if not np.isfinite(image).all():
        raise ValueError("the image holds NaN or infinity")
    low, high = _range(image, preprocessing)
    return _fit(_scale(image, low, high), preprocessing.size)[np.newaxis]


def normalised(images: Image, mean: float, deviation: float) -> Image:
    """float32 [..., h, w] in [0, 1] -> with the `mean` of all hospitals taken off, divided by their `deviation`."""
    return (images - np.float32(mean)) / np.float32(deviation)


def _range(image: Image, preprocessing: Preprocessing) -> tuple[float, float]:
    """Low and high end in modality units; equal for an image whose percentiles coincide."""
    match preprocessing.intensity:
        case "window":
            return preprocessing.low, preprocessing.high
        case "percentiles":
            low, high = np.percentile(image.astype(np.float64), (preprocessing.low, preprocessing.high))
            return float(low), float(high)


def _scale(image: Image, low: float, high: float) -> Image:
    """[low, high] to [0, 1], clipped; without contrast (low = high) there is only 0."""
    if high <= low:
        return np.zeros(image.shape, dtype=np.float32)
    scaled = (image.astype(np.float64) - low) / (high - low)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)


def _fit(image: Image, size: tuple[int, int]) -> Image:
    """Resize into (height, width) and pad with zeros around.

    Fitting first and padding after keeps the memory that of the target, whatever the aspect ratio, and keeps
    the padding out of the filter. An odd pixel of padding goes to the bottom and the right.
    """
    height, width = size
    ratio = min(height / image.shape[0], width / image.shape[1])
    inner = (_side(image.shape[0] * ratio, height), _side(image.shape[1] * ratio, width))
    top, left = (height - inner[0]) // 2, (width - inner[1]) // 2
    canvas = np.zeros(size, dtype=np.float32)
    canvas[top : top + inner[0], left : left + inner[1]] = _resize(image, inner)
    return canvas


def _side(exact: float, most: int) -> int:
    return min(max(round(exact), 1), most)


def _resize(image: Image, size: tuple[int, int]) -> Image:
    """Bilinear with antialiasing: when shrinking, the filter widens with the scale, so that no pixel is skipped."""
    if image.shape == size:
        return image
    import torch
    from torch.nn.functional import interpolate

    batch = torch.from_numpy(np.ascontiguousarray(image))[None, None]
    resized: Image = interpolate(batch, size=size, mode="bilinear", antialias=True)[0, 0].numpy()
    return np.clip(resized, 0.0, 1.0)  # the filter's weights sum to 1 only up to rounding
