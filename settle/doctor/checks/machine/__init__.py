"""What is wrong on this machine itself: its disk, the runs and models in settle's home, the server, memory and time."""
