"""What a model computes on a text, layer by layer."""
