"""What the server costs beside llama.cpp alone: the harness of `settle bench`."""
