"""From a symptom to its cause, proven by an A/B re-run of one changed setting, to a fix that is tested again."""
