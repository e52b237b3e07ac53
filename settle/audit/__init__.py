"""What leaves this machine: a ledger of the connections of a run, with how complete it is.

Three levels, by name: *proved* (an empty network namespace), *watched* (Linux's seccomp notifications: every process of
the run, native code too), *observed* (Python's audit hook only).
"""

PROVED, WATCHED, OBSERVED = "proved", "watched", "observed"
LEDGER_FOLDER = "audit"  # in the folder of a run
