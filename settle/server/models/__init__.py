"""The models a server offers: found by name, loaded on demand, described."""
