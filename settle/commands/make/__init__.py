"""Commands that make something: a model, or an index of documents."""
