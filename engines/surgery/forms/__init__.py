"""Passes that write scales as one compiler likes them; the codes stay."""
