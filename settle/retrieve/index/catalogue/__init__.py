"""What a collection holds, in one SQLite file: documents, passages, vectors, words."""
