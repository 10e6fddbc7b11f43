"""Goldens of pictures: Pillow's resizing and Pillow's reading of every format.

Writes crates/data/tests/goldens/image_resize.safetensors: <picture> [h, w, c] uint8 and for each case in the config
<case> [h, w, c] uint8; and image_formats.safetensors: <case>.file [n] uint8 and <case>.pixels [h, w, c] (uint8, or int32 for
16 bits), turned as EXIF says, without alpha; <case>.grey [h, w, 1] uint8 is `convert("L")` of it.
"""

import io
import struct
import warnings
import zlib

import numpy as np
import torch
from common import goldens, save, setup
from PIL import Image, ImageOps

SCRIPT = "python/goldens/data_image.py"
FILTERS = ("nearest", "box", "bilinear", "hamming", "bicubic", "lanczos")
SIZES = ((16, 16), (57, 43), (37, 10), (20, 29), (1, 1), (90, 3))
BOXES = ((2.5, 1.25, 30.75, 20.5), (0, 0, 10, 10), (36.2, 28.1, 37, 29), (5, 0, 30, 29))


def smooth(height: int, width: int, channels: int) -> np.ndarray:
    """Waves with some noise: what a decoder and a filter treat as a picture."""
    rng = np.random.RandomState(0)
    y, x, c = np.mgrid[0:height, 0:width, 0:channels]
    waves = 127 + 90 * np.sin(x / 5 + c) * np.cos(y / 4 - c) + rng.normal(0, 6, size=(height, width, channels))
    return waves.clip(0, 255).astype(np.uint8)


def tensor(image: Image.Image | np.ndarray) -> torch.Tensor:
    array = np.asarray(image)
    return torch.from_numpy(array.reshape(*array.shape[:2], -1).copy())


def resize(image: Image.Image, size: tuple[int, int], name: str, box: tuple) -> Image.Image:
    """Across, then down, each in a call of its own: what one call does up to Pillow 12. From 13 on one call goes down
    first where that is less work, and rounds elsewhere; published models were trained and measured before."""
    method = getattr(Image.Resampling, name.upper())
    left, top, right, bottom = box
    image = image.resize((size[0], image.height), method, box=(left, 0, right, image.height))
    return image.resize(size, method, box=(0, top, size[0], bottom))


def resizing() -> None:
    rng = np.random.RandomState(1)
    pictures = {
        "rgb": smooth(29, 37, 3),
        "grey": smooth(29, 37, 1),
        # Black and white at random drives sums beyond both ends.
        "hard": (rng.rand(29, 37, 3) < 0.5).astype(np.uint8) * 255,
    }
    tensors = {name: torch.from_numpy(pixels) for name, pixels in pictures.items()}
    cases = []

    def add(picture: str, name: str, box: tuple, size: tuple) -> None:
        image = Image.fromarray(pictures[picture].squeeze())
        case = f"{picture}.{name}.{len(cases)}"
        tensors[case] = tensor(resize(image, size, name, box))
        cases.append({"case": case, "picture": picture, "filter": name, "box": list(box), "size": list(size)})

    for name in FILTERS:
        for size in SIZES:
            add("rgb", name, (0, 0, 37, 29), size)
        for box in BOXES:
            add("hard", name, box, (24, 17))
        add("rgb", name, (0, 0, 37, 29), (37, 29))
        add("grey", name, (0, 0, 37, 29), (50, 11))
        add("hard", name, (0, 0, 37, 29), (19, 40))
    save(goldens("data") / "image_resize.safetensors", SCRIPT, tensors, {"cases": cases}, packages=("pillow", "numpy"))


def png(array: np.ndarray, kind: int) -> bytes:
    """A PNG with 16 bits per value, which Pillow does not write for colours."""
    height, width = array.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in array)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 16, kind, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def formats() -> None:
    rgb = Image.fromarray(smooth(16, 24, 3))
    grey = Image.fromarray(smooth(16, 24, 1)[..., 0])
    alpha = Image.fromarray(255 - smooth(16, 24, 1)[..., 0])
    rgba = Image.merge("RGBA", (*rgb.split(), alpha))
    palette = rgb.quantize(16)
    other = ImageOps.invert(rgb)
    files: dict[str, bytes] = {}

    def add(name: str, image: Image.Image, form: str, **options) -> None:
        file = io.BytesIO()
        image.save(file, form, **options)
        files[name] = file.getvalue()

    def turned(orientation: int) -> bytes:
        exif = Image.Exif()
        exif[0x0112] = orientation
        return exif.tobytes()

    add("png_rgb", rgb, "PNG")
    add("png_grey", grey, "PNG")
    add("png_grey_alpha", Image.merge("LA", (grey, alpha)), "PNG")
    add("png_rgb_alpha", rgba, "PNG")
    add("png_palette", palette, "PNG")
    add("png_palette_transparent", palette, "PNG", transparency=3)
    add("png_bits", grey.convert("1"), "PNG")
    add("png_animated", rgb, "PNG", save_all=True, append_images=[other])
    for orientation in range(1, 9):
        add(f"png_turned_{orientation}", rgb, "PNG", exif=turned(orientation))
    add("jpeg_rgb", rgb, "JPEG", quality=90)
    add("jpeg_full_colour", rgb, "JPEG", quality=95, subsampling=0)
    add("jpeg_grey", grey, "JPEG", quality=90)
    add("jpeg_progressive", rgb, "JPEG", quality=90, progressive=True)
    add("jpeg_restarts", rgb, "JPEG", quality=90, restart_marker_blocks=1)
    add("jpeg_cmyk", rgb.convert("CMYK"), "JPEG", quality=95)
    add("jpeg_turned_6", rgb, "JPEG", quality=90, exif=turned(6))
    add("webp_lossless", rgb, "WEBP", lossless=True)
    add("webp_lossy", rgb, "WEBP", quality=90)
    add("webp_alpha", rgba, "WEBP", lossless=True, exact=True)
    add("webp_turned_8", rgb, "WEBP", lossless=True, exif=turned(8))
    add("webp_animated", rgb, "WEBP", lossless=True, save_all=True, append_images=[other])
    add("gif", palette, "GIF")
    add("gif_animated", palette, "GIF", save_all=True, append_images=[other.quantize(16)])
    add("bmp", rgb, "BMP")
    add("tiff", rgb, "TIFF")
    add("tiff_packed", grey, "TIFF", compression="tiff_lzw")

    deep = {"png_rgb_16": (smooth(16, 24, 3).astype(np.int32) * 251 + 17, 2), "png_grey_16": (smooth(16, 24, 1).astype(np.int32) * 253 + 5, 0)}
    tensors = {}
    for name, (pixels, kind) in deep.items():
        files[name] = png(pixels, kind)
        tensors[f"{name}.pixels"] = torch.from_numpy(pixels)
    for name, file in files.items():
        tensors[f"{name}.file"] = torch.from_numpy(np.frombuffer(file, np.uint8).copy())
        if name in deep:
            continue
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a transparent palette without RGBA is meant
            image = ImageOps.exif_transpose(Image.open(io.BytesIO(file)))
            image = image.convert("L" if image.mode in ("1", "L", "LA") else "RGB")
        tensors[f"{name}.pixels"] = tensor(image)
        tensors[f"{name}.grey"] = tensor(image.convert("L"))
    save(goldens("data") / "image_formats.safetensors", SCRIPT, tensors, {"cases": sorted(files)}, packages=("pillow", "numpy"))


if __name__ == "__main__":
    setup()
    resizing()
    formats()
