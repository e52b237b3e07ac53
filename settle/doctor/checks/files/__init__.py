"""What is wrong in a file of weights, its header or its tokenizer."""
