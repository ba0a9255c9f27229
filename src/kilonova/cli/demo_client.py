"""The few API calls that the demo makes, on the standard library: it must run before any client is there."""

from __future__ import annotations

import http.client
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click

PIECE = 1 << 20


class Answer(dict[str, Any]):
    """A JSON body; ``headers`` beside it."""

    headers: dict[str, str]


class DemoClient:
    """A session of one user with all services of the catalog."""

    def __init__(self, clouds_yaml: Path, cloud: str) -> None:
        auth = json.loads(clouds_yaml.read_text())["clouds"][cloud]["auth"]
        domain = {"name": "Default"}
        user = {"name": auth["username"], "password": auth["password"], "domain": domain}
        body = {
            "auth": {
                "identity": {"methods": ["password"], "password": {"user": user}},
                "scope": {"project": {"name": auth["project_name"], "domain": domain}},
            }
        }
        self._token = ""
        self._urls: dict[str, str] = {}
        answer = self._send("POST", f"{auth['auth_url']}/auth/tokens", json.dumps(body).encode())
        self._token = answer.headers["x-subject-token"]
        self.project_id: str = answer["token"]["project"]["id"]
        for service in answer["token"]["catalog"]:
            self._urls[service["type"]] = service["endpoints"][0]["url"]

    def call(self, service: str, method: str, path: str, body: Any = None, version: str = "2.96") -> Answer:
        """One request.  Raises ClickException with what the service said."""
        content = None if body is None else json.dumps(body).encode()
        return self._send(method, self._urls[service] + path, content, version)

    def upload(self, image_id: str, file: Path, progress: Callable[[int], None]) -> None:
        """Send an image's data in pieces."""

        def pieces() -> Iterator[bytes]:
            with file.open("rb") as source:
                while piece := source.read(PIECE):
                    yield piece
                    progress(len(piece))

        parts = urlsplit(f"{self._urls['image']}/v2/images/{image_id}/file")
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=300)
        headers = {
            "X-Auth-Token": self._token,
            "Content-Type": "application/octet-stream",
            "Content-Length": str(file.stat().st_size),
        }
        connection.request("PUT", parts.path, pieces(), headers)
        response = connection.getresponse()
        text = response.read()
        connection.close()
        if response.status != 204:
            raise click.ClickException(f"The image was refused: {text.decode(errors='replace')}")

    def _send(self, method: str, url: str, content: bytes | None, version: str = "") -> Answer:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection(str(parts.hostname), parts.port, timeout=60)
        headers = {"Content-Type": "application/json"} if content is not None else {}
        if self._token:
            headers["X-Auth-Token"] = self._token
        if version:
            headers["OpenStack-API-Version"] = f"compute {version}"
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        try:
            connection.request(method, path, content, headers)
            response = connection.getresponse()
            text = response.read()
        except OSError as error:
            raise click.ClickException(f"Cannot reach {url}: {error}.") from error
        finally:
            connection.close()
        if response.status >= 400:
            raise click.ClickException(f"{method} {url}: {response.status} {text.decode(errors='replace')}")
        try:
            answer = Answer(json.loads(text) if text else {})
        except ValueError:
            answer = Answer()
        answer.headers = {name.lower(): value for name, value in response.getheaders()}
        return answer
