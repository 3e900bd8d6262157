"""`python -m tlhelpers`: see `tlhelpers.cli`."""

import sys

from tlhelpers.course.prefetch import main

sys.exit(main())
