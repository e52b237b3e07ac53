"""Set up other programs to use a running server: their configuration written, taken back, and their requests checked.

clients/        one file a client
client          what `settle connect` does
server          the server to connect to, its models, and requests sent as a client sends them
client_files    a client's files written, and restored
config_files    our entry merged into a configuration file of others
"""
