"""The command line: a thin layer above the stages."""
