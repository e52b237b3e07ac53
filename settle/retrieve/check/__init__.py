"""How well a collection finds, cites and refuses, measured with questions about its own documents."""
