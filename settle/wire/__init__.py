"""The bodies of the APIs that people speak: how requests are written, what they ask for, and how replies read."""
