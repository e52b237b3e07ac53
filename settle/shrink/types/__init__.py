"""ggml types: which one each tensor gets, and what it costs."""
