"""The same as `clipcap parse custom`: images and captions → feature file. Flags: --help."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["parse", "custom", *sys.argv[1:]]))
