"""Image sets: reading, decoding, splitting, duplicates and manifests. Independent of models."""
