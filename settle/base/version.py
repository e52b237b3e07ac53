"""The version of settle."""

__version__ = "0.1.0"
