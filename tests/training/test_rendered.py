"""What the page of tokens shows is what training reads, row by row and in all."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError
from accounts.models import Project, User
from inference.models import Version
from tests.training.test_runs import base_version, folder, snapshot  # noqa: F401
from training.engine.data import read_trees
from training.engine.render import Part
from training.engine.tokens import PlainTokenizer
from training.models import Snapshot
from training.rendered import preview_row


def ids(part: Part | None) -> tuple[int, ...]:
    assert part is not None
    return tuple(one for piece in part.pieces for one in piece.ids)


@pytest.mark.parametrize(("max_length", "max_prompt_length"), [(512, 256), (40, 20), (21, 20)])
def test_it_shows_what_training_reads(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    max_length: int,
    max_prompt_length: int,
) -> None:
    limits: dict[str, int] = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    base = base_version.base
    tokenizer = PlainTokenizer(Path(base.path))
    trees, counts = read_trees(snapshot.folder / "train.parquet", tokenizer, **limits)
    read = {(tree.prompt, response) for tree in trees for response in tree.responses}
    found = [
        preview_row(
            snapshot=snapshot, part="train", number=number, base=base, method="dpo", **limits
        )
        for number in range(1, counts.rows + 1)
    ]
    used = [one.rendered for one in found if not one.rendered.dropped]
    for one in used:
        for side in (one.chosen, one.rejected):
            assert (ids(one.prompt), ids(side)) in read
    assert len(used) == counts.used
    assert sum(one.truncated for one in used) == counts.truncated
    assert found[0].counts == counts.as_dict()
    for one in found:
        prompt = one.rendered.prompt
        text = "".join(piece.text for piece, _ in prompt.laid_out)
        assert text == tokenizer.apply_chat_template(
            one.row["prompt"], tokenize=False, add_generation_prompt=True
        )


def test_the_page_and_rest_show_a_row(
    project: Project,
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    lead: User,
    annotator: User,
    stranger: User,
    login: Callable[[User], Client],
    api: Callable[..., APIClient],
) -> None:
    address = reverse("rendered_row", args=[project.slug, snapshot.pk])
    assert (
        address
        in login(lead).get(reverse("snapshot", args=[project.slug, snapshot.pk])).content.decode()
    )
    page = login(lead).get(address)
    assert page.status_code == 200
    text = page.content.decode()
    rows = snapshot.manifest["rows"]["train"]
    assert f"Row 1 of {rows}" in text
    assert 'class="token token-special"' in text
    cut = login(lead).get(f"{address}?row=2&max_length=30&max_prompt_length=12")
    assert "token-cut" in cut.content.decode()
    far = login(lead).get(f"{address}?row={rows + 1}")
    assert (far.status_code, f"has {rows} rows" in far.content.decode()) == (400, True)
    assert login(lead).get(f"{address}?row=x").status_code == 400
    assert login(annotator).get(address).status_code == 403
    assert login(stranger).get(address).status_code == 404
    sent = api(lead).get(f"/api/snapshots/{snapshot.pk}/rendered?row=2&part=heldout").json()
    assert (sent["number"], sent["dropped"]) == (2, "")
    assert sent["rows"] == snapshot.manifest["rows"]["heldout"]
    assert sent["counts"]["in"] == sent["counts"]["used"] == rows
    pieces = sent["chosen"]["pieces"]
    assert "".join(piece["text"] for piece in pieces).startswith("Response ")
    refused = api(lead).get(f"/api/snapshots/{snapshot.pk}/rendered?base=none")
    assert "“none”" in refused.json()["message"]


def test_it_says_that_a_base_has_no_tokenizer(
    snapshot: Snapshot,  # noqa: F811
    base_version: Version,  # noqa: F811
    tmp_path: Path,
) -> None:
    base = base_version.base
    base.path = str(tmp_path)
    with pytest.raises(ProductError, match="tokenizer of tiny"):
        preview_row(snapshot=snapshot, part="train", number=1, base=base, method="dpo")
