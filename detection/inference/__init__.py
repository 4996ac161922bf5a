"""Prediction with trained detectors: at several scales, refined, mirrored, as an ensemble."""
