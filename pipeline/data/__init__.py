"""Images, labels and batches."""
