"""`python -m hpcgnn` is the command `hpcgnn`."""

import sys

from hpcgnn.cli.main import main

sys.exit(main())
