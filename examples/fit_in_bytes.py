"""Encode a picture into so many bytes, and compare it with the best JPEG that fits into them.

python examples/fit_in_bytes.py photo.png 40000
"""

import io
import sys

import numpy as np
from PIL import Image, ImageOps

import hvcompress


def psnr(a: Image.Image, b: Image.Image) -> float:
    error = np.mean(np.square(np.asarray(a, np.float64) - np.asarray(b, np.float64)))
    return 10 * np.log10(255**2 / error)


def best_jpeg(image: Image.Image, size: int) -> bytes | None:
    """The JPEG of the highest quality with at most so many bytes."""
    for quality in range(95, 0, -1):
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality, optimize=True)
        if buffer.tell() <= size:
            return buffer.getvalue()
    return None


def main() -> None:
    path, size = sys.argv[1], int(sys.argv[2])
    with Image.open(path) as opened:
        image = ImageOps.exif_transpose(opened).convert("RGB")  # upright, as it is encoded
    data = hvcompress.encode(image, size=size, strict=True)
    print(f"hvcompress: {len(data):,} bytes, {psnr(image, hvcompress.decode(data)):.2f} dB")
    jpeg = best_jpeg(image, size)
    if jpeg is None:
        print("JPEG: does not fit at any quality")
    else:
        print(f"JPEG: {len(jpeg):,} bytes, {psnr(image, Image.open(io.BytesIO(jpeg))):.2f} dB")


if __name__ == "__main__":
    main()
