"""The environment variables of this process; no other module reads them."""

import os

ENVIRON = os.environ
