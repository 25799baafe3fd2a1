"""The environment variables of this process: the one place that reads them."""

import os

ENVIRON = os.environ
