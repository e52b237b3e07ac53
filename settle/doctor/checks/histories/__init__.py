"""What a training history of another trainer shows; nothing of it can be run again."""
