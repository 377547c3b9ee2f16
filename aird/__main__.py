"""`python -m aird`."""

import sys

from aird.commands.main import main

sys.exit(main())
