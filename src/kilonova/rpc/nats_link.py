"""A connection to NATS that comes back by itself, with all subscriptions.

The client library's own reconnecting waits for the old connection's buffers to be flushed, which a server
that was stopped never does: here an old connection is left to its fate and a new one is made.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import ssl
from collections import deque
from collections.abc import Callable
from pathlib import Path

import msgspec
import nats.errors
import structlog
from nats.aio.client import Client
from nats.aio.msg import Msg
from nats.aio.subscription import Subscription

from kilonova.clock import Clock, set_within
from kilonova.errors import Failed, Invalid, Unreachable
from kilonova.rpc.credentials import public_of

log = structlog.get_logger("kilonova.bus")

PROBE = 2.0  # seconds between looks whether the server answers
SILENCE = 5.0  # seconds that it may take to
SOON = 1.0  # seconds to wait for what is good to know and no more
PAUSE = 0.5  # seconds before the first attempt to connect again; doubled up to
LONGEST_PAUSE = 4.0
NO_RESPONDERS = "503"
TLS_BEGINS = "tls_required"  # without it in the server's greeting the client library speaks plainly

Handler = Callable[[str, bytes, str], None]
"""Called in the event loop with subject, data and where to answer.  No data: nobody listens there."""


class BusOptions(msgspec.Struct, frozen=True, kw_only=True):
    """``[nats]``: where the servers are and who we are to them."""

    servers: tuple[str, ...]
    prefix: str = "kilonova"
    seed_file: Path | None = None  # our nkey
    ca_file: Path | None = None
    cert_file: Path | None = None
    key_file: Path | None = None

    @property
    def shown(self) -> str:
        """The servers, without what is between ``//`` and ``@``: for logs and users."""
        return ", ".join(re.sub(r"//[^/]*@", "//", each) for each in self.servers)

    def seed(self) -> str | None:
        """Our key.  Raises Failed for a file that is not there or has none."""
        if self.seed_file is None:
            return None
        try:
            if self.seed_file.stat().st_mode & 0o077:
                raise Failed(f"[nats]nkey_seed_file {self.seed_file} can be read by others: chmod 600 it.")
            seed = self.seed_file.read_text().strip()
            public_of(seed)
        except OSError as error:
            raise Failed(f"[nats]nkey_seed_file {self.seed_file}: {error.strerror}.") from error
        except (Invalid, UnicodeDecodeError) as error:
            raise Failed(f"[nats]nkey_seed_file {self.seed_file}: {error}") from error
        return seed

    def tls(self) -> ssl.SSLContext | None:
        """None: it need not be.  Raises Failed for files that are not there or are none of that kind."""
        if self.ca_file is None and not any(each.startswith("tls:") for each in self.servers):
            return None
        try:
            context = ssl.create_default_context(cafile=None if self.ca_file is None else str(self.ca_file))
            context.minimum_version = ssl.TLSVersion.TLSv1_2
            if self.cert_file is not None:
                context.load_cert_chain(str(self.cert_file), self.key_file and str(self.key_file))
        except (OSError, ssl.SSLError) as error:
            raise Failed(f"[nats] TLS files cannot be used: {error}") from error
        return context


class _Subscribed:
    """A subscription that survives its connection."""

    __slots__ = ("current", "handler", "queue", "subject")

    def __init__(self, subject: str, queue: str, handler: Handler) -> None:
        self.subject = subject
        self.queue = queue
        self.handler = handler
        self.current: Subscription | None = None


class Link:
    """``open`` begins to connect, ``close`` ends.  ``on_lost`` and ``on_back`` are called at each change."""

    def __init__(
        self, options: BusOptions, clock: Clock, name: str, inbox: str, *, silence: float = SILENCE
    ) -> None:
        self.options = options
        self.inbox = inbox
        self.on_lost: list[Callable[[], None]] = []
        self.on_back: list[Callable[[], None]] = []
        self._clock = clock
        self._name = name
        self._silence = silence
        self._client: Client | None = None
        self._subscribed: dict[int, _Subscribed] = {}
        self._numbers = iter(range(1, 1 << 62))
        self._up = asyncio.Event()
        self._renew = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._old: set[asyncio.Task[None]] = set()
        self._why = "nobody answers"

    @property
    def connected(self) -> bool:
        return self._client is not None

    def open(self) -> None:
        """Raises Failed for TLS or key files that cannot be used."""
        self.options.tls()
        self.options.seed()
        self._task = asyncio.create_task(self._keep(), name="bus")

    async def wait(self, seconds: float) -> None:
        """Until there is a connection.  Raises Unreachable."""
        try:
            async with asyncio.timeout(seconds):
                await self._up.wait()
        except TimeoutError:
            raise Unreachable(f"No connection to NATS at {self.options.shown}: {self._why}.") from None

    async def close(self) -> None:
        while self._task is not None and not self._task.done():
            self._task.cancel()  # which the client library may swallow
            await asyncio.wait({self._task}, timeout=self._silence)
        if self._client is not None:
            await self._leave(self._client)
            self._client = None
        await asyncio.gather(*self._old, return_exceptions=True)

    async def publish(self, subject: str, data: bytes, reply: str = "") -> None:
        """Raises Unreachable when there is no connection."""
        if self._client is None:
            raise Unreachable("There is no connection to NATS at the moment.")
        try:
            await self._client.publish(subject, data, reply)
        except nats.errors.MaxPayloadError as error:
            raise Failed(f"A message of {len(data)} bytes is more than the bus carries.") from error
        except (nats.errors.Error, OSError) as error:
            raise Unreachable(f"NATS does not take a message: {error!r}") from error

    async def subscribe(self, subject: str, handler: Handler, queue: str = "") -> Callable[[], None]:
        """Hear ``subject`` from now on, over all connections; what is returned ends it."""
        number = next(self._numbers)
        subscribed = self._subscribed[number] = _Subscribed(subject, queue, handler)
        if self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):  # then the next connection has it
                await self._attach(self._client, subscribed)
                await self._settle(self._client)

        def end() -> None:
            self._subscribed.pop(number, None)
            if subscribed.current is not None and self._client is not None:
                task = asyncio.ensure_future(_quietly(subscribed.current.unsubscribe()))
                self._old.add(task)
                task.add_done_callback(self._old.discard)

        return end

    async def settled(self) -> None:
        """Return when the bus knows of all that we hear by now, and hear no more, or does not answer soon."""
        if self._client is not None:
            with contextlib.suppress(nats.errors.Error, OSError):  # TimeoutError is one
                async with asyncio.timeout(SOON):
                    await self._settle(self._client)

    def renew(self) -> None:
        """Take a new connection: the old one seems to be up and is of no use."""
        self._renew.set()

    # ---- inside ----

    async def _keep(self) -> None:
        pause = PAUSE
        while True:
            try:
                client = await self._connect()
            except (nats.errors.Error, OSError, TimeoutError, Failed, Unreachable) as error:
                self._why = _reason(error)
                log.warning("no connection to NATS", servers=self.options.shown, error=self._why)
                await self._clock.sleep(pause)
                pause = min(2 * pause, LONGEST_PAUSE)
                continue
            pause = PAUSE
            self._client = client
            self._up.set()
            log.info("connected to NATS", servers=self.options.shown)
            self._call(self.on_back)
            await self._watch(client)
            self._client = None
            self._up.clear()
            log.warning("the connection to NATS is lost")
            self._call(self.on_lost)
            self._leave_behind(client)

    async def _connect(self) -> Client:
        client, errors = Client(), deque[Exception](maxlen=1)
        try:
            async with asyncio.timeout(self._silence):
                await self._greet(client, errors)
                for subscribed in tuple(self._subscribed.values()):
                    await self._attach(client, subscribed)
                await self._settle(client)
        except BaseException as error:
            self._leave_behind(client)
            if errors and isinstance(error, (nats.errors.NoServersError, TimeoutError)):
                raise Unreachable(_reason(errors[-1])) from error  # which says more
            raise
        return client

    async def _greet(self, client: Client, errors: deque[Exception]) -> None:
        """``errors`` gets what the client library does not raise while it connects."""

        async def heard(error: Exception) -> None:
            errors.append(error)
            if client.is_connected:
                log.warning("NATS reports an error", error=_reason(error))

        tls = self.options.tls()
        await client.connect(
            list(self.options.servers),
            name=self._name,
            error_cb=heard,
            allow_reconnect=False,
            connect_timeout=max(1, int(self._silence)),
            max_reconnect_attempts=1,
            reconnect_time_wait=0,  # between servers of the list; the pauses between attempts are ours
            tls=tls,
            nkeys_seed_str=self.options.seed(),
            inbox_prefix=self.inbox,
            ping_interval=3600,
            flusher_queue_size=8192,
        )
        if tls is not None and not client._server_info.get(TLS_BEGINS):
            raise Failed("the server speaks without TLS, which [nats]ca_file and tls:// ask for")

    async def _attach(self, client: Client, subscribed: _Subscribed) -> None:
        async def heard(message: Msg) -> None:
            status = (message.headers or {}).get("Status")
            data = b"" if status == NO_RESPONDERS else message.data
            try:
                subscribed.handler(message.subject, data, message.reply)
            except Exception:  # one bad message must not end the hearing of all others
                log.exception("a message was not taken", subject=message.subject)

        subscribed.current = await client.subscribe(subscribed.subject, queue=subscribed.queue, cb=heard)

    async def _settle(self, client: Client) -> None:
        """Wait until the server has all subscriptions.

        The library's flush sends its ping before what is still in its buffer, so the first one only empties
        that.
        """
        for _ in range(2):
            await self._flush(client)

    async def _flush(self, client: Client) -> None:
        """A cancellation counts also when the answer comes at the same moment: the library waits with
        ``asyncio.wait_for``, which in Python 3.11 forgets it then."""
        await client.flush(self._silence)  # type: ignore[arg-type]  # it asks for an int and takes any number
        task = asyncio.current_task()
        if task is not None and task.cancelling():
            raise asyncio.CancelledError

    async def _watch(self, client: Client) -> None:
        """Come back when the connection is of no use any more."""
        self._renew.clear()
        while client.is_connected:
            if await set_within(PROBE, self._clock, self._renew):
                return
            try:
                async with asyncio.timeout(self._silence):
                    await self._flush(client)
            except (nats.errors.Error, OSError, TimeoutError):
                return

    def _leave_behind(self, client: Client) -> None:
        task = asyncio.create_task(self._leave(client))
        self._old.add(task)
        task.add_done_callback(self._old.discard)

    async def _leave(self, client: Client) -> None:
        try:
            async with asyncio.timeout(self._silence):
                await client.close()
        except (nats.errors.Error, OSError, TimeoutError) as error:
            log.info("an old connection to NATS is left behind", error=repr(error))

    def _call(self, listeners: list[Callable[[], None]]) -> None:
        for each in tuple(listeners):
            each()


def _reason(error: Exception) -> str:
    """What a client library says, in words that tell an operator where to look."""
    text = str(error).strip().removeprefix("nats: ").strip("'") or type(error).__name__
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate is not that of [nats]ca_file, or of another machine: {error.verify_message}"
    if "Authorization Violation" in text:
        return "it does not know our key (Authorization Violation); see `kilonova host list`"
    return text


async def _quietly(work: object) -> None:
    with contextlib.suppress(nats.errors.Error, OSError):
        await work  # type: ignore[misc]
