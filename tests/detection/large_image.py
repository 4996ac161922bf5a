"""Run by test_tiled.py: the memory, in kB, that prediction on a large image in tiles takes.

Usage: large_image.py SIDE TILE, both in pixels. The memory of the image itself is not counted.
"""

import sys

import numpy as np

from detection.tiled import TiledDetector
from tests.detection.data.many_masks import memory
from tests.detection.test_tiled import make_detector


def main() -> None:
    """Predict a small image, so that all is loaded, then the large one."""
    side, tile = map(int, sys.argv[1:])
    detector = make_detector()
    TiledDetector(detector, tile=(64, 64)).predict([np.full((200, 200, 3), 99, np.uint8)])
    image = np.full((side, side, 3), 99, np.uint8)
    before = memory("VmRSS")
    TiledDetector(detector, tile=(tile, tile)).predict([image])
    sys.stdout.write(str(memory("VmHWM") - before))


if __name__ == "__main__":
    main()
