"""Requests in the one form that all APIs share, and how a child answers them."""
