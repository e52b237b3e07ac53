"""Decision models: typed questions put to llama.cpp, the probabilities it gives, and when an answer is refused."""
