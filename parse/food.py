"""The same as `clipcap parse food`: images and captions → feature file. Flags: --help."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["parse", "food", *sys.argv[1:]]))
