"""The same as `clipcap parse flickr8k`: images and captions → feature file. Flags: --help."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["parse", "flickr8k", *sys.argv[1:]]))
