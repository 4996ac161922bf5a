"""The commands as scripts: each calls one function of `detection.commands` or `tools.lab`."""
