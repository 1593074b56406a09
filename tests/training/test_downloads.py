"""What is trained on and how it is exported downloads in parts, by the server's own path."""

from __future__ import annotations

from collections.abc import Callable

import httpx
import pytest
from rest_framework.test import APIClient

from accounts.models import Project, Scope, User
from accounts.services import create_token
from feedback.models import Campaign
from inference.artifacts import file_digest
from tests.training.test_snapshots import judge_all, strict, take_snapshot
from training import formats
from training.models import Snapshot


@pytest.fixture
def snapshot(campaign: Campaign, project: Project, annotator: User) -> Snapshot:
    judge_all(campaign, annotator, strict)
    return take_snapshot(project, campaign, heldout=0.0)


@pytest.mark.django_db(transaction=True)
async def test_files_and_exports_resume_by_asgi(snapshot: Snapshot, key: str) -> None:
    from config.asgi import application

    part = snapshot.folder / "train.parquet"
    expected = {
        "files/train.parquet": part.read_bytes(),
        "files/manifest.json": (snapshot.folder / "manifest.json").read_bytes(),
        "export/trl-preference": b"".join(formats.export(part, "trl-preference")),
    }
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app=application),
        base_url=f"http://testserver/api/snapshots/{snapshot.pk}/",
        headers={"Authorization": f"Bearer {key}"},
    ) as client:
        for path, content in expected.items():
            first = await client.get(path, headers={"Range": "bytes=0-99"})
            assert first.status_code == 206, path
            rest = {"Range": "bytes=100-", "If-Range": first.headers["ETag"]}
            second = await client.get(path, headers=rest)
            assert second.headers["Content-Range"] == f"bytes 100-{len(content) - 1}/{len(content)}"
            assert first.content + second.content == content
            head = await client.head(path)
            assert (head.status_code, head.content) == (200, b"")
            beyond = await client.get(path, headers={"Range": f"bytes={len(content)}-"})
            assert (beyond.status_code, "no more" in beyond.json()["message"]) == (416, True)


@pytest.fixture
def key(project: Project, lead: User) -> str:
    _, text = create_token(project=project, user=lead, name="test", scopes=[Scope.READ], days=1)
    return text


def test_a_download_stands_by_its_digest_and_is_for_members(
    snapshot: Snapshot,
    lead: User,
    stranger: User,
    annotator: User,
    api: Callable[..., APIClient],
) -> None:
    path = f"/api/snapshots/{snapshot.pk}/files/train.parquet"
    etag = api(lead).get(path)["ETag"]
    assert etag == f'"{file_digest(snapshot.folder / "train.parquet")}"'
    elsewhere = stranger.memberships.get().project
    for name in ("files/train.parquet", "export/csv"):
        path = f"/api/snapshots/{snapshot.pk}/{name}"
        asked = {"Range": "bytes=0-9"}
        assert api(stranger, of=elsewhere).get(path, headers=asked).status_code == 404
        assert api(annotator).get(path, headers=asked).status_code == 403
        assert APIClient().get(path, headers=asked).status_code == 401
    (snapshot.folder / "train.parquet").unlink()
    assert api(lead).get(f"/api/snapshots/{snapshot.pk}/files/train.parquet").status_code == 404


def test_an_export_that_asks_the_database_is_not_resumed(
    snapshot: Snapshot, lead: User, api: Callable[..., APIClient]
) -> None:
    path = f"/api/snapshots/{snapshot.pk}/export/arena"
    response = api(lead).get(path, headers={"Range": "bytes=10-"})
    assert (response.status_code, response["Accept-Ranges"]) == (200, "none")
