"""Runs the command `hpcgnn`, as `python -m hpcgnn`."""

import sys

from hpcgnn.cli.main import main

sys.exit(main())
