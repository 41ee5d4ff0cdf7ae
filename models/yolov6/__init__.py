"""YOLOv6, in every size and release."""
