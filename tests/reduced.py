"""Makes full-HD JPEGs as a camera would for tests/reduced.rs.

usage: reduced.py DIRECTORY PHOTO...

Enlarges the middle of each PHOTO, adds noise, and saves it as NAME-KIND.jpg in DIRECTORY.
"""
import pathlib
import sys

import numpy as np
from PIL import Image

KINDS = {
    "420": {"subsampling": "4:2:0"},
    "422": {"subsampling": "4:2:2"},
    "444": {"subsampling": "4:4:4"},
    "restarts": {"subsampling": "4:2:0", "restart_marker_blocks": 7},
    "optimized": {"subsampling": "4:2:0", "optimize": True},
    "grey": {},
    "progressive": {"subsampling": "4:2:0", "progressive": True},
}


def main():
    directory, noise = pathlib.Path(sys.argv[1]), np.random.default_rng(1)
    for index, path in enumerate(map(pathlib.Path, sys.argv[2:])):
        with Image.open(path) as image:
            image = image.convert("RGB")
        scale = max(1920 / image.width, 1080 / image.height)
        image = image.resize((round(image.width * scale), round(image.height * scale)))
        left, top = (image.width - 1920) // 2, (image.height - 1080) // 2
        pixels = np.asarray(image.crop((left, top, left + 1920, top + 1080)), np.float32)
        pixels = pixels + noise.normal(0, 4, pixels.shape[:2])[..., None]
        image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
        # All kinds of the first, the commonest of the others.
        for kind in KINDS if index == 0 else ["420"]:
            image = image.convert("L" if kind == "grey" else "RGB")
            image.save(directory / f"{path.stem}-{kind}.jpg", quality=85, **KINDS[kind])


main()
