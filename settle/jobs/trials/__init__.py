"""Two or more settings or candidates on the same rows: asked in turns, answered once, and compared."""
