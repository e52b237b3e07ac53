"""Every token of a text with its probability, by any model: what it might have been, and how the text goes on."""
