"""Child processes of ours."""
