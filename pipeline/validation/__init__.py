"""Whether INT8 is as good as FP32, and how fast."""
