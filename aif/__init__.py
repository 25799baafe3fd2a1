"""aif turns prompts into preference datasets by AI feedback."""

import os

# Whoever runs aif tells nobody. huggingface_hub and datasets read these when they are first imported: the one would
# name what is installed here with every request, the other count each dataset that is read at a bucket of its makers.
for _name, _value in (("HF_HUB_DISABLE_TELEMETRY", "1"), ("HF_UPDATE_DOWNLOAD_COUNTS", "0")):
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
