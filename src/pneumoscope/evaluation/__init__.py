"""Metrics, intervals, calibration, thresholds and comparisons from labels and scores."""
