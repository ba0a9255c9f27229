"""Requests about key pairs."""

from __future__ import annotations

from typing import Annotated, Literal

from kilonova.api.query import Keys
from kilonova.api.schema.kinds import FullText, Name
from kilonova.api.shape import Maybe, Required, Shape, since


class NewKeypair(Shape):
    name: Name
    public_key: Annotated[Maybe[str], Required(92)] = None
    type: Annotated[Literal["ssh", "x509"], since(2)] = "ssh"
    user_id: Annotated[Maybe[FullText], since(10)] = None


class CreateKeypair(Shape):
    keypair: NewKeypair


OF_USER = Keys({"user_id": since(10)}, strict_since=75)
LIST = Keys({"user_id": since(10), "limit": since(35), "marker": since(35)}, strict_since=75)
