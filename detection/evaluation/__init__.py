"""Scoring: COCO average precision, and pictures of how it came about."""
