"""What the images are and what they show. Knows no model."""
