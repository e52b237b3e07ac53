"""What a model is worth: the gate between a live model and its file, and the card that goes with it."""
