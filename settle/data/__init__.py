"""From what a person points at to batches: sources → cleaning → split → tokenizer → token store → batches."""
