"""The tests of proxykit; run them with ``python -m twisted.trial tests``."""

import os

from hypothesis import settings

# In CI the same examples each time, so that a change is judged by what it changed; elsewhere new
# ones are looked for with every run.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
