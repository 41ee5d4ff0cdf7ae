"""Checkpoints: fetch them, read them without running them, match them to a network."""
