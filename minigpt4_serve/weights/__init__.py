"""Model files: the names of their tensors, conversion of the original's checkpoints, strict loading."""
