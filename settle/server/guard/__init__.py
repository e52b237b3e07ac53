"""What is checked before anything in a request is believed."""
