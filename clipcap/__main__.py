"""`python -m clipcap`."""

import sys

from clipcap.cli.main import main

sys.exit(main())
