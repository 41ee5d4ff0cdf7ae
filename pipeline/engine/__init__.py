"""From the exported file to an engine, and to what it costs beside FP16's."""
