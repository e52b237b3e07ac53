"""What `settle plan` reports: a run on described machines, its money, and when a model of one's own pays off."""
