"""The same as `clipcap parse photos`: photos without captions → feature file. Flags: --help."""

import sys

from clipcap.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["parse", "photos", *sys.argv[1:]]))
