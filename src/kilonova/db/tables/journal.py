"""Tables of journal."""
