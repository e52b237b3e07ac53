"""Calls of tools in answers: demanded through a grammar in the form of the model's template, or recognised in text."""
