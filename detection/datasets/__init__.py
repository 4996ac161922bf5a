"""Data sets: download, conversion to COCO JSON, and the synthetic demo data."""
