"""A backbone, its blocks, and which of them train. Knows no images."""
