"""`python -m clipcap`."""

import sys

from clipcap.cli import main

sys.exit(main())
