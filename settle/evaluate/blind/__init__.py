"""Two models compared by a person who does not know which of them wrote what."""
