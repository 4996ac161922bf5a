"""Readers and writers of the annotation formats of labelling tools, one module for each format."""
