"""The hot path. One file an operation: its maths in words, the plain PyTorch form, and what makes it fast."""
