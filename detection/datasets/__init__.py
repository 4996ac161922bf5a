"""Data sets: downloading them, converting them to COCO JSON, and drawing the demo's."""
