"""Photos or features → captions; the same as `clipcap predict`. Flags: `python predict.py --help`."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["predict", *sys.argv[1:]]))
