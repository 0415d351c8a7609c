"""The model side of the library: a backbone, its blocks, and which of them train."""
