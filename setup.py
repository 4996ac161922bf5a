"""For tools that ask for it; what is installed, and from where, stands in pyproject.toml."""

from setuptools import setup

setup()
