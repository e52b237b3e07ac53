"""Why an answer is bad: what the model was asked, with what, and how it was drawn."""
