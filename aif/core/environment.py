"""The environment variables of this process, as `ENVIRON`; other modules import it in place of `os.environ`."""

import os

ENVIRON = os.environ
