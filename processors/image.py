"""Images: safe decoding, one EXIF rotation, and the size at which a model sees them."""

from __future__ import annotations

import hashlib
import io
import math
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image as Pillow
from PIL import ImageOps

from mmrl.errors import MediaError
from mmrl.processors.files import name_of, read_file
from mmrl.types import Box, CoordinateFrame, Media, MediaRef, Size

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")
MAX_ASPECT = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """Loads still images; of an animation, the first frame."""

    min_pixels: int = 56 * 56
    """Pixels of the image as the model sees it, at least."""
    max_pixels: int = 1280 * 28 * 28
    """Pixels of the image as the model sees it, at most."""
    factor: int = 28
    """Sides of the seen image are multiples of it: the model's patch size times its merge size."""
    max_source_pixels: int = 50_000_000
    """A larger file is refused from its header, before it is decoded."""
    max_source_bytes: int = 100_000_000
    """A larger file is not read."""

    def load(self, ref: MediaRef) -> Media:
        """Decode and resize. MediaError names the file and what is wrong with it."""
        name = name_of(ref)
        original = decode(read_file(ref, self.max_source_bytes), name, self.max_source_pixels)
        size = (original.shape[1], original.shape[0])
        try:
            seen = fit_size(size, self.factor, self.min_pixels, self.max_pixels)
        except ValueError as error:
            raise MediaError(f"image {name}: {error}") from None
        return view(original, None, seen, label=name)


def decode(data: bytes, name: str, max_pixels: int) -> np.ndarray:
    """H x W x 3 uint8 in displayed orientation. Nothing is allocated for an image over `max_pixels`."""
    try:
        _silence_bomb_warning()
        image = Pillow.open(io.BytesIO(data), formats=FORMATS)
        if image.width * image.height > max_pixels:
            raise MediaError(
                f"image {name}: {image.width} x {image.height} is over the cap of {max_pixels} pixels; "
                "shrink the file or raise max_source_pixels"
            )
        image.load()
        return np.asarray(to_rgb(ImageOps.exif_transpose(image)))
    except Pillow.DecompressionBombError:
        raise MediaError(f"image {name}: far over the cap of {max_pixels} pixels; shrink the file") from None
    except MediaError:
        raise
    except Exception as error:  # decoders raise anything on broken bytes: OSError, SyntaxError, struct.error ...
        raise MediaError(f"image {name}: cannot be decoded ({error}); replace the file") from None


def _silence_bomb_warning() -> None:
    """Our own cap, from the header, says more. For good: catch_warnings undoes what other threads do meanwhile."""
    if all(category is not Pillow.DecompressionBombWarning for _, _, category, *_ in warnings.filters):
        warnings.simplefilter("ignore", Pillow.DecompressionBombWarning)


def to_rgb(image: Pillow.Image) -> Pillow.Image:
    """RGB, transparency on white, 16-bit grey scaled to 8."""
    if image.mode.startswith("I;16") or image.mode == "I":
        grey = np.asarray(image).astype(np.int64).clip(0, 65535) // 257
        return Pillow.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        layer = image.convert("RGBA")
        white = Pillow.new("RGBA", layer.size, "white")
        return Pillow.alpha_composite(white, layer).convert("RGB")
    return image.convert("RGB")


def fit_size(size: Size, factor: int, min_pixels: int, max_pixels: int) -> Size:
    """The size nearest to `size`, in multiples of `factor`, whose pixels lie within the budget (Qwen2-VL's rule).

    ValueError where one side is over 200 times the other.
    """
    width, height = size
    if max(size) > MAX_ASPECT * min(size):
        raise ValueError(f"{width} x {height} is too narrow: one side is over {MAX_ASPECT} times the other")
    w, h = (max(factor, round(side / factor) * factor) for side in size)
    if w * h > max_pixels:
        shrink = math.sqrt(width * height / max_pixels)
        most = max(factor, max_pixels // factor**2 * factor)  # of one side, where the other is a single patch
        w, h = (min(max(factor, math.floor(side / shrink / factor) * factor), most) for side in size)
    elif w * h < min_pixels:
        grow = math.sqrt(min_pixels / (width * height))
        w, h = (math.ceil(side * grow / factor) * factor for side in size)
    return w, h


def view(original: np.ndarray, region: Box | None, seen: Size, *, label: str, parent: str | None = None) -> Media:
    """A region of an original, shown at size `seen`; the one place where pixels become what a model sees.

    Args:
        original: H x W x 3 uint8.
        region: whole pixels inside the original; None is all of it.
    """
    height, width = original.shape[:2]
    x1, y1, x2, y2 = (int(v) for v in region or (0, 0, width, height))
    cut = Pillow.fromarray(original[y1:y2, x1:x2])
    pixels = np.asarray(cut.resize(seen, Pillow.Resampling.BICUBIC))
    frame = CoordinateFrame(
        original=(width, height),
        seen=seen,
        offset=(float(x1), float(y1)),
        scale=((x2 - x1) / seen[0], (y2 - y1) / seen[1]),
    )
    digest = hashlib.sha256(repr((pixels.shape, frame, parent)).encode())
    digest.update(pixels.tobytes())
    return Media(
        kind="image",
        key=digest.hexdigest(),
        data=pixels,
        frame=frame,
        original=original,
        parent=parent,
        label=label,
    )
