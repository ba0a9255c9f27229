"""Tables of image."""
