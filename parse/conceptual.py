"""The same as `clipcap parse conceptual`: images and captions → feature file. Flags: --help."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["parse", "conceptual", *sys.argv[1:]]))
