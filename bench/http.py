"""The lean client of the load generators, which the package ships."""

from kilonova.testing.http_client import Client as Client
