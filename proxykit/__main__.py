"""``python -m proxykit``: the ``proxykit`` command."""

import sys

from proxykit.cli import main

sys.exit(main())
