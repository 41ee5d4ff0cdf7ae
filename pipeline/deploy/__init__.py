"""What leaves the workspace: build kits and Triton's model repository."""
