"""`python -m medseg.cli` is `medseg`."""

import sys

from medseg.cli.app import main

sys.exit(main())
