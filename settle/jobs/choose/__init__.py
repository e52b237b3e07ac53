"""settle choose: are better instructions, documents or tuning enough, measured on the user's own examples."""
