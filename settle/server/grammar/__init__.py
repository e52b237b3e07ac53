"""Grammars that constrain an answer: made, checked before the engine sees them, and answers checked against them."""
