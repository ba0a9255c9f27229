"""Tables of network."""
