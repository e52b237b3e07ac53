"""Answers: llama.cpp in a child process, and sampling from a live torch model."""
