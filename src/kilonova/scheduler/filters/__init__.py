"""Filters: whether a host can take a server.  ``registry`` knows them by their names, which are Nova's."""
