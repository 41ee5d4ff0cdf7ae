"""What an engine costs: milliseconds, predicted from its kernels and a GPU's data sheet."""
