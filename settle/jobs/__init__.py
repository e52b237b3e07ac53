"""Work that a person starts, each job a list of stages that reads from top to bottom."""
