"""The environment variables of this process, as `ENVIRON`. No other module reads `os.environ`; `make lint` checks
that."""

import os

ENVIRON = os.environ
