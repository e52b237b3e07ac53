"""settle pick: which model for this task on this machine, measured on the user's own prompts."""
