"""The bodies of the command line tools, one module per command."""
