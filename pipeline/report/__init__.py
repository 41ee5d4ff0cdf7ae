"""One page and one JSON file of what a run found."""
