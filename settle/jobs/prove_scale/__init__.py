"""The proof that any number of ranks trains the same model: short runs of one plan, compared."""
