"""From the user's inputs to batches: sources → cleaning → split → tokenizer → token store → batches."""
