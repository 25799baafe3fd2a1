"""aif turns prompts into preference datasets by AI feedback."""

import os

# Turn telemetry off. huggingface_hub and datasets read these variables when they are first imported: huggingface_hub
# would send the names of installed packages with every request, datasets would report every dataset that is loaded.
for _name, _value in (("HF_HUB_DISABLE_TELEMETRY", "1"), ("HF_UPDATE_DOWNLOAD_COUNTS", "0")):
    os.environ.setdefault(_name, _value)

__version__ = "0.1.0"
