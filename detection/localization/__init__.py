"""Localization: find the objects of one class per image (He et al. 2015, appendix C)."""
