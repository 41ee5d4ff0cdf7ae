"""The quantized model: a traced network, its quantizers, and where they stand."""
