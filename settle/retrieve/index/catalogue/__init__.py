"""The contents of a collection in one SQLite file: documents, passages, vectors, words."""
