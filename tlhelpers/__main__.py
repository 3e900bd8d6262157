"""`python -m tlhelpers`: see `tlhelpers.cli`."""

import sys

from tlhelpers.cli import main

sys.exit(main())
