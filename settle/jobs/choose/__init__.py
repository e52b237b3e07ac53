"""settle choose: are better instructions, documents or tuning enough, measured on the person's own examples."""
