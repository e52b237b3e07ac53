"""What stands between the network and the server: who is let in, and what may be sent."""
