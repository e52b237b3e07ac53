"""The version of settle."""

__version__ = "0.2.0"
