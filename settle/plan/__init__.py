"""Before a run: what it will be and cost. After it: what it was."""
