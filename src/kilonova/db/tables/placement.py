"""Tables of placement."""
