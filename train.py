"""Feature file → captioner; the same as `clipcap train`. Flags: `python train.py --help`."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
