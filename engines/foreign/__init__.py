"""What comes from others: its limits, how it is shown, and the border where it comes in.

The one part of `engines` that every package may import, together with `artifacts` and `file_lock`.
"""
