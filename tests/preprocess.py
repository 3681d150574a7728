"""The witness for tests/preprocess.rs: torchvision's rule and other framings, computed with Pillow.

usage: preprocess.py DIRECTORY ROTATE REGION FIT SIDE...

Makes more kinds of photo from DIRECTORY/photo-*.png, then writes for each photo in DIRECTORY and
each SIDE the network's input, NCHW float32, to PHOTO.SIDE.f32 beside it.
"""
import pathlib
import sys

import numpy as np
from PIL import Image, ImageOps

MEAN = np.array([0.485, 0.456, 0.406], np.float32)
STD = np.array([0.229, 0.224, 0.225], np.float32)


def resize(image, short):
    """transforms.Resize(short): torchvision.transforms.functional._compute_resized_output_size."""
    width, height = image.size
    long = int(short * max(width, height) / min(width, height))
    size = (short, long) if width <= height else (long, short)
    return image if size == image.size else image.resize(size, Image.Resampling.BILINEAR)


def center_crop(image, side):
    """transforms.CenterCrop(side): torchvision.transforms.functional.center_crop."""
    width, height = image.size
    top, left = int(round((height - side) / 2.0)), int(round((width - side) / 2.0))
    return image.crop((left, top, left + side, top + side))


def turn(image, rotate):
    """Clockwise; Pillow counts the other way round."""
    turns = {90: Image.Transpose.ROTATE_270, 180: Image.Transpose.ROTATE_180,
             270: Image.Transpose.ROTATE_90}
    return image.transpose(turns[rotate]) if rotate else image


def cut(image, region):
    left, top, width, height = map(float, (region or "0 0 1 1").split())
    box = (left * image.width, top * image.height,
           (left + width) * image.width, (top + height) * image.height)
    return image.crop(tuple(map(round, box)))


def square(image, fit, side):
    """The pixels, and where they are not the bars of a letterbox."""
    if fit == "crop":
        return center_crop(resize(image, round(256 / 224 * side)), side), 1
    if fit == "squash":
        return image.resize((side, side), Image.Resampling.BILINEAR), 1
    shown = Image.new("L", image.size, 255)
    image, shown = (ImageOps.pad(x, (side, side), Image.Resampling.BILINEAR)
                    for x in (image, shown))
    return image, np.asarray(shown, np.float32)[..., None] / 255


def network_input(path, rotate, region, fit, side):
    with Image.open(path) as image:
        image = ImageOps.exif_transpose(image).convert("RGB")
    image, shown = square(cut(turn(image, rotate), region), fit, side)
    x = np.asarray(image, np.float32) / np.float32(255)
    return ((x - MEAN) / STD * shown).astype(np.float32).transpose(2, 0, 1)


def derive(path):
    with Image.open(path) as image:
        image = image.convert("RGB")
    name = path.with_suffix("")
    exif = Image.Exif()
    exif[0x0112] = 1 + sum(image.size) % 8
    alpha = image.copy()
    alpha.putalpha(image.getchannel("G"))

    image.save(f"{name}-420.jpg", quality=90, subsampling="4:2:0", exif=exif)
    image.save(f"{name}-422.jpg", quality=95, subsampling="4:2:2")
    image.save(f"{name}-444-progressive.jpg", quality=75, subsampling="4:4:4", progressive=True)
    image.save(f"{name}-420-progressive.jpg", quality=90, subsampling="4:2:0", progressive=True)
    image.save(f"{name}-restarts.jpg", quality=90, restart_marker_blocks=7)
    image.convert("L").save(f"{name}-grey.jpg", quality=90)
    image.convert("CMYK").save(f"{name}-cmyk.jpg", quality=90)
    image.save(f"{name}-lossy.webp", quality=90)
    image.save(f"{name}-lossless.webp", lossless=True, method=0, exif=exif)
    alpha.save(f"{name}-alpha.webp", lossless=True, method=0, exact=True)
    alpha.save(f"{name}-alpha.png", compress_level=1, exif=exif)
    alpha.convert("LA").save(f"{name}-grey-alpha.png", compress_level=1)
    image.convert("L").save(f"{name}-grey.png", compress_level=1)
    image.quantize(64).save(f"{name}-palette.png", compress_level=1)
    image.convert("1").save(f"{name}-bilevel.png", compress_level=1)


def main():
    directory, rotate, region, fit = pathlib.Path(sys.argv[1]), int(sys.argv[2]), *sys.argv[3:5]
    for path in sorted(directory.glob("photo-*.png")):
        derive(path)
    for path in sorted(directory.iterdir()):
        for side in map(int, sys.argv[5:]):
            network_input(path, rotate, region, fit, side).tofile(f"{path}.{side}.f32")


main()
