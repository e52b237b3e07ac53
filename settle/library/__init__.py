"""Models by name: where their files are, what is known of them, how they get here, and how they become GGUF."""
