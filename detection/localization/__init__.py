"""Localization: one class an image, and where its objects are (the paper's appendix C)."""
