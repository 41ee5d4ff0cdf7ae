"""What networks return: boxes, and how close two results are."""
