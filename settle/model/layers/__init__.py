"""The layers every decoder is built from."""
