"""What fits on a machine, and how fast it answers there: memory and speed of a model before it is loaded."""
