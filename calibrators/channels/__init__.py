"""Factors of a tensor's channels in front of its quantizer, which the layers behind it take back."""
