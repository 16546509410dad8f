"""The tests of proxykit; run them with ``python -m twisted.trial tests``."""

import os

from hypothesis import settings

# In CI the same examples each time, so that a change is judged by what it changed; elsewhere new
# ones are looked for with every run. None has to be fast: a machine may be busy.
settings.register_profile("here", deadline=None)
settings.register_profile("ci", derandomize=True, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "here")
