"""Who is better, and does a change help: arms measured on the same items in turns, and what their numbers show."""
