"""The ground floor: errors, settings, the registry of parts, the run folder, events. No torch here."""
