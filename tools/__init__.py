"""Commands: each parses its arguments, loads a config and calls one function."""
