"""What a model was asked and what it answered: recorded by a client, or asked again."""
