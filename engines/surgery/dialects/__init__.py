"""Quantization in other spellings than Q/DQ pairs, written as pairs, or taken out of a graph."""
