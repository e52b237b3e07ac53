"""Tables and records: rows of cells, or of named values."""
