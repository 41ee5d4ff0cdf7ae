"""Methods for transformers: RepQ-ViT, RepQuant and SmoothQuant."""
