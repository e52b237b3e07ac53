"""Calls of tools in answers that a model wrote as text: the one reader, for servers and for who scores answers."""
