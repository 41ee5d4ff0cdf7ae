"""The folder of a run: its files, its stages, and what each read and wrote."""
