"""From an image in the modality's units to the network's input: the same in every hospital, fixed by the plan."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from boundary.images import Preprocessing
from models.resampling import canonical_slices, canonical_volume, nearest, resampled, resampled_mask, turned

Image = NDArray[np.float32]
Mask = NDArray[np.uint8]
_SMALLEST, _LARGEST = 1e-20, 1e20  # beyond, float32 has no room for what lies between


def to_input(image: Image, preprocessing: Preprocessing) -> Image:
    """float32 [H, W] in modality units (HU for CT) -> float32 [1, h, w] in [0, 1], (h, w) = `preprocessing.size`.

    Intensities are mapped and clipped first, then the image is resized. Its aspect ratio is kept: it is fitted
    into the size and centred on zeros, the low end of the scale (air on CT). Every pixel counts as square.
    Raises `ValueError` if the image is empty, not two-dimensional, or holds NaN or infinity.
    """
    if image.ndim != 2 or image.size == 0:
        raise ValueError(f"an image of shape {image.shape}, not [height, width]")
    low, high = _range(image, preprocessing)
    height, width = preprocessing.size
    return _fit(_scale(image, low, high), (height, width))[np.newaxis]


def volume_inputs(
    volume: Image, mask: Mask, affine: NDArray[np.float64], preprocessing: Preprocessing
) -> Iterator[tuple[Image, Mask]]:
    """Inputs of a volume with the class of each of their pixels: one pair, or one for each slice if `size` has 2 sides.

    `volume` float32 [D, H, W] in modality units and `mask` uint8 of the same shape; `affine` float64 [4, 4] from
    (slice, row, column, 1) to RAS mm. Gives float32 [1, *size] in [0, 1] and uint8 [*size], slices in their order.

    Intensities are mapped and clipped first, by the percentiles of the whole volume where the plan asks for those. Then
    axes are swapped and turned (`resampling.canonical_volume`, `canonical_slices`). With `spacing` both are resampled
    and cut or padded around their centre, the image linearly, the mask to the nearest voxel; slices without one are
    fitted as single images are, the mask by the same geometry. Padding is the low end of the scale, and the first
    class. Raises `ValueError` as `to_input`, and where the mask is of another shape.
    """
    if volume.ndim != 3 or volume.size == 0 or mask.shape != volume.shape:
        raise ValueError(f"an image of shape {volume.shape} with a mask of {mask.shape}, not [depth, height, width]")
    low, high = _range(volume, preprocessing)
    distances = np.linalg.norm(affine[:3, :3], axis=0)
    axes = canonical_volume(affine) if len(preprocessing.size) == 3 else canonical_slices(affine)
    own = [float(distances[abs(axis) - 1]) for axis in axes]
    if len(preprocessing.size) == 3:
        scaled = np.empty_like(volume)
        for plane, values in zip(scaled, volume, strict=True):
            plane[:] = _scale(values, low, high)
        yield _resampled(turned(scaled, axes), turned(mask, axes), own, preprocessing)
        return
    for values, classes in zip(turned(volume, axes), turned(mask, axes), strict=True):
        yield _resampled(_scale(values, low, high), classes, own[1:], preprocessing)


def _resampled(image: Image, mask: Mask, own: list[float], preprocessing: Preprocessing) -> tuple[Image, Mask]:
    """The same number of axes as `size` has; `own` are the distances of their voxels, mm."""
    size, to = preprocessing.size, preprocessing.spacing
    if to is None:
        height, width = size
        return _fit(image, (height, width))[np.newaxis], _fit_mask(mask, (height, width))
    found = np.clip(resampled(image, own, to, size), 0.0, 1.0)
    return found[np.newaxis], resampled_mask(mask, own, to, size)


def normalised(images: Image, mean: float, deviation: float) -> Image:
    """float32 [..., h, w] in [0, 1] -> with the `mean` of all hospitals taken off, divided by their `deviation`."""
    return (images - np.float32(mean)) / np.float32(deviation)


def _range(image: Image, preprocessing: Preprocessing) -> tuple[float, float]:
    """Low and high end in modality units; equal for an image whose percentiles coincide. Raises `ValueError`."""
    if not np.isfinite(image).all():
        raise ValueError("the image holds NaN or infinity")
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
    if high - low < _SMALLEST or max(abs(low), abs(high)) > _LARGEST:
        return np.clip((image.astype(np.float64) - low) / (high - low), 0.0, 1.0).astype(np.float32)
    with np.errstate(over="ignore"):  # what becomes infinite is clipped
        scaled = image - np.float32(low)
        scaled /= np.float32(high - low)
    return np.clip(scaled, 0.0, 1.0, out=scaled)


def _fit(image: Image, size: tuple[int, int]) -> Image:
    """Resize into (height, width) and pad with zeros around.

    Fitting first and padding after keeps the memory that of the target, whatever the aspect ratio, and keeps
    the padding out of the filter. An odd pixel of padding goes to the bottom and the right.
    """
    (top, left), inner = _frame(image.shape, size)
    canvas = np.zeros(size, dtype=np.float32)
    canvas[top : top + inner[0], left : left + inner[1]] = _resize(image, inner)
    return canvas


def _fit_mask(mask: Mask, size: tuple[int, int]) -> Mask:
    """The same with the class of the nearest pixel: centres lie as `_resize` has them, and padding is class 0."""
    (top, left), inner = _frame(mask.shape, size)
    rows, columns = (
        nearest((np.arange(new) + 0.5) * (old / new) - 0.5, old) for new, old in zip(inner, mask.shape, strict=True)
    )
    canvas = np.zeros(size, dtype=np.uint8)
    canvas[top : top + inner[0], left : left + inner[1]] = mask[np.ix_(rows, columns)]
    return canvas


def _frame(shape: tuple[int, ...], size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Where an image of `shape` goes within `size`, and how large it is there."""
    height, width = size
    ratio = min(height / shape[0], width / shape[1])
    inner = (_side(shape[0] * ratio, height), _side(shape[1] * ratio, width))
    return ((height - inner[0]) // 2, (width - inner[1]) // 2), inner


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
