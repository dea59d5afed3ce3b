"""From photos to feature maps on disk."""
