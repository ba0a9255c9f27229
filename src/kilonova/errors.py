"""Every error of the project, ordered by what the caller can do about it.  Knows no HTTP.

KilonovaError
├── Refused                 the request is at fault: tell the user, change nothing
│   ├── Invalid             the request makes no sense as it stands
│   │   └── TooLarge        a body or a value is above its limit
│   ├── Unauthenticated     no token, or one that is not valid (any more)
│   ├── Forbidden           the caller may not do this
│   │   └── OverQuota       the project has used up what it was given
│   ├── NotFound            nothing of that name that the caller may see
│   └── Conflict            not in the state that this thing is in now
├── TryAgain                nothing is wrong but the moment: repeat with back-off
│   └── Unreachable         a peer (host, service) does not answer
│       └── DatabaseUnavailable
├── HostFault               this host cannot do it, another one may
├── Failed                  it cannot be done: undo and say so
│   └── NoValidHost         no host is left; carries the reason for each
└── LostLease               another runner owns the operation now: stop without a word
"""

from __future__ import annotations


class KilonovaError(Exception):
    """Base of all.  ``str(error)`` is fit for a user: what happened, to what, what to do."""


class Refused(KilonovaError):
    """The request is at fault; nothing was changed."""


class Invalid(Refused):
    """The request makes no sense as it stands."""


class TooLarge(Invalid):
    """A body or a value is above its limit."""


class Unauthenticated(Refused):
    """There is no token, or it is not valid."""


class Forbidden(Refused):
    """The caller is known and may not do this."""


class OverQuota(Forbidden):
    """The project has used up what it was given."""


class NotFound(Refused):
    """Nothing of that name that the caller may see."""


class Conflict(Refused):
    """The thing is not in a state in which this can be done."""


class TryAgain(KilonovaError):
    """Only the moment is wrong; the same call may succeed later."""


class Unreachable(TryAgain):
    """A peer does not answer.  Never taken for a fact about what the peer did."""


class DatabaseUnavailable(Unreachable):
    """The database cannot be reached; the transaction did not happen as far as is known."""


class HostFault(KilonovaError):
    """This host cannot do it; another host may."""


class Failed(KilonovaError):
    """It cannot be done; what was begun is undone."""


class NoValidHost(Failed):
    """No host is left.

    ``reasons`` has for each host that was looked at (of very many: for some) the one reason why it was not
    taken, ``removed`` how many hosts each filter has refused.
    """

    def __init__(
        self, message: str, reasons: dict[str, str] | None = None, removed: dict[str, int] | None = None
    ) -> None:
        super().__init__(message)
        self.reasons = reasons or {}
        self.removed = removed or {}


class LostLease(KilonovaError):
    """Another runner owns the operation now."""
