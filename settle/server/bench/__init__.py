"""What the server adds to llama.cpp, measured."""
