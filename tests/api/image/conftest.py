"""One image service a module, and plain HTTP to it."""

from __future__ import annotations

import http.client
import json
from collections.abc import Iterator
from typing import Any

import pytest

from tests.api.image.cloud import Cloud

JSON_PATCH = "application/openstack-images-v2.1-json-patch"


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        self.body = response.read()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


class Http:
    """Requests as one user."""

    def __init__(self, cloud: Cloud, token: str | None) -> None:
        self.cloud = cloud
        self.token = token

    def __call__(
        self, method: str, path: str, body: Any = None, headers: dict[str, str] | None = None
    ) -> Answer:
        sent = {"X-Auth-Token": self.token} if self.token else {}
        if body is not None and not isinstance(body, bytes):
            body = json.dumps(body).encode()
            sent["Content-Type"] = "application/json"
        connection = http.client.HTTPConnection("127.0.0.1", self.cloud.port, timeout=60)
        try:
            connection.request(method, path, body, {**sent, **(headers or {})})
            return Answer(connection.getresponse())
        finally:
            connection.close()

    def patch(self, image_id: str, *operations: Any, media_type: str = JSON_PATCH) -> Answer:
        body = json.dumps(list(operations)).encode()
        return self("PATCH", f"/v2/images/{image_id}", body, {"Content-Type": media_type})

    def put(self, image_id: str, data: bytes, **headers: str) -> Answer:
        sent = {"Content-Type": "application/octet-stream"}
        sent.update({name.replace("_", "-"): value for name, value in headers.items()})
        return self("PUT", f"/v2/images/{image_id}/file", data, sent)

    def create(self, **fields: Any) -> str:
        answer = self("POST", "/v2/images", {"disk_format": "raw", "container_format": "bare", **fields})
        assert answer.status == 201, answer.body
        return str(answer.json["id"])


@pytest.fixture(scope="module")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cloud]:
    with Cloud(tmp_path_factory.mktemp("cloud")).serving() as running:
        yield running


@pytest.fixture
def alice(cloud: Cloud) -> Http:
    return Http(cloud, "alice")


@pytest.fixture
def bob(cloud: Cloud) -> Http:
    return Http(cloud, "bob")


@pytest.fixture
def admin(cloud: Cloud) -> Http:
    return Http(cloud, "admin")
