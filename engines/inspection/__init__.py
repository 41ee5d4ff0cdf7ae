"""What an engine is made of: its kernels, and which layers run in INT8."""
