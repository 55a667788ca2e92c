"""The same as `clipcap parse coco`: images and captions → feature file. Flags: --help."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["parse", "coco", *sys.argv[1:]]))
