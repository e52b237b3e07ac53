"""Training on many devices: shapes, layouts, memory with shards, throughput, failures and whole runs."""
