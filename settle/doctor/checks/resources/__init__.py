"""What a run needs and this machine has not: memory, time, room."""
