"""Scripts for the commands: each parses its arguments, loads a config and calls one function."""
