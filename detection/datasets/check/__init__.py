"""Checks of a COCO JSON: all findings in one run, and a repaired copy."""
