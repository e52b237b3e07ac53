"""What the page of the next token needs: the models that are open, and a text as chips in the browser."""
