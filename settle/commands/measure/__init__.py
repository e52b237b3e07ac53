"""Commands that measure a model or settle itself."""
