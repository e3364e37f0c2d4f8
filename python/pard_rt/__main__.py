"""`python -m pard_rt`: the command line."""

import sys

from pard_rt.cli import main

sys.exit(main())
