"""Evaluators: update(detections, targets), compute() -> named numbers."""
