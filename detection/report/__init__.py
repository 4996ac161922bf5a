"""Reports: why a score is what it is, as one HTML page and as JSON."""
