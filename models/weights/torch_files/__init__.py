"""Torch's own files, read without running what they say."""
