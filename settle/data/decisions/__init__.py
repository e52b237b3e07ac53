"""Decisions: typed questions about a state, and a probability for every option.

A question has one of three types, which are those of llama.cpp's `/v1/systemone` (as of 2026-10): `noul` is true or
false, `choice` is one of several options, `score` is one of 2 to 10 ordered levels.
"""
