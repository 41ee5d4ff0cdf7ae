"""Many runs: a grid of recipes, cell by cell, on this machine or on a cluster of Ray."""
