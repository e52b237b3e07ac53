"""Documents: found, cited, and said to be silent where they are.

folders → reading (in a child) → chunkers → embedders → stores and the catalogue → search → evidence → answer
"""
