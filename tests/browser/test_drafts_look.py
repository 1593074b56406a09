"""The review of drafts: by keyboard alone, without a fault, in both themes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from accounts.models import Project, User
from feedback.drafts import approve, reject
from feedback.models import Campaign, Prompt, text_digest
from feedback.models_drafts import Draft, DraftRequest
from feedback.services import add_prompts
from inference.models import Completion, Version
from tests.browser.looks import Look, assert_readable

pytestmark = [pytest.mark.browser, pytest.mark.django_db(transaction=True)]

PROMPTS = [
    "How do I move a photo from my phone to the computer when neither of them has a cable?",
    "Explain to a child why the moon does not fall down.",
    "Which questions should I ask before I sign a lease?\n\n- rent\n- repairs\n- notice",
    "Write a short apology to a neighbour for a loud party.",
]
ANSWER = (
    "Hold the power button for ten seconds.\n\n1. Let it go when the light blinks.\n"
    "2. Wait a minute.\n\n```\nreset --all\n```"
)


def drafted(
    project: Project, version: Version, by: User, *, prompt: Prompt | None, texts: list[str]
) -> list[Draft]:
    """Store drafts as the worker does, one for each text."""
    kind = DraftRequest.Kind.RESPONSE if prompt else DraftRequest.Kind.PROMPT
    shown = list(Prompt.objects.values_list("pk", flat=True)[:2])
    sampling = {"temperature": 1.0, "top_p": 1.0, "max_tokens": 256}
    request = DraftRequest.objects.create(
        project=project,
        kind=kind,
        version=version,
        sampling=sampling,
        prompts=[prompt.pk] if prompt else shown,
        wanted=len(texts),
        guidance="Everyday questions, politely.",
        state=DraftRequest.State.READY,
        by=by,
    )
    made = []
    for number, text in enumerate(texts):
        proposed = text if prompt else [{"role": "user", "content": text}]
        completion = Completion.objects.create(
            project=project,
            version=version,
            requested_model=version.name,
            source=Completion.Source.DRAFT,
            messages=[],
            text=text,
            sampling=sampling | {"seed": number},
        )
        draft = Draft(
            request=request,
            number=number,
            completion=completion,
            prompt=prompt,
            examples=[] if prompt else shown,
            proposed=proposed if text else None,
            digest=text_digest(proposed),
        )
        if not text:
            draft.state, draft.reason = Draft.State.UNFIT, "The model wrote nothing."
        draft.save()
        made.append(draft)
    return made


@pytest.fixture
def prompt(project: Project) -> Prompt:
    return add_prompts(project=project, prompts=["How do I reset it?", "Where is my parcel?"])[0]


def test_a_lead_reviews_by_keyboard_alone(
    sign_in: Callable[..., Page],
    project: Project,
    base_version: Version,
    lead: User,
    owner: User,
    prompt: Prompt,
) -> None:
    drafts = drafted(project, base_version, lead, prompt=None, texts=[*PROMPTS, "A fifth one?"])
    page = sign_in(lead, f"/p/support/drafts/{drafts[0].pk}/")

    def at(draft: Draft) -> None:
        page.wait_for_url(lambda url: f"/drafts/{draft.pk}/" in url)
        expect(page.get_by_text(draft.last_turn[:40]).first).to_be_visible()

    at(drafts[0])
    page.keyboard.press("a")
    at(drafts[1])
    page.keyboard.press("n")
    at(drafts[2])
    page.keyboard.press("e")
    expect(page.get_by_label("Person")).to_be_focused()
    page.keyboard.press("Control+a")
    page.keyboard.type("What about a lease, a repair, an end?")  # letters that are keys elsewhere
    page.keyboard.press("Control+Enter")
    at(drafts[3])
    page.keyboard.press("e")
    page.keyboard.press("Control+a")
    page.keyboard.type("Approved as it stands on the page.")
    page.keyboard.press("Escape")
    page.keyboard.press("a")
    at(drafts[4])
    page.keyboard.press("r")
    at(drafts[1])
    page.keyboard.press("u")
    at(drafts[4])
    expect(page.get_by_role("status")).to_contain_text("waits for a decision again")
    page.keyboard.press("r")
    at(drafts[1])
    expect(page.get_by_text("1 left to review")).to_be_visible()
    reject(draft=drafts[1], by=owner)
    page.keyboard.press("a")
    expect(page.get_by_role("alert")).to_contain_text("olga rejected this draft already")
    states = [draft.state for draft in Draft.objects.order_by("id")]
    assert states == ["approved", "rejected", "approved", "approved", "rejected"]
    made = Prompt.objects.filter(draft__edited=True).order_by("id")
    assert [one.last_turn for one in made] == [
        "What about a lease, a repair, an end?",
        "Approved as it stands on the page.",
    ]


def test_it_shows_drafts_to_everybody(
    sign_in: Callable[..., Page],
    project: Project,
    base_version: Version,
    lead: User,
    prompt: Prompt,
    make_campaign: Callable[..., Campaign],
    look: Look,
) -> None:
    make_campaign(items=1, responses=2)
    made = drafted(project, base_version, lead, prompt=None, texts=[*PROMPTS, ""])
    [answer, other, third] = drafted(
        project, base_version, lead, prompt=prompt, texts=[ANSWER, "It is in the post.", "Ask."]
    )
    edited = [{"role": "user", "content": "A question that a person put right."}]
    approve(draft=made[0], by=lead, instead=edited)
    approve(draft=other, by=lead)
    reject(draft=third, by=lead, why="It says nothing that would help.")
    DraftRequest.objects.filter(pk=answer.request_id).update(
        state="failed", reason="The model server at http://127.0.0.1:8101 does not answer."
    )
    page = sign_in(lead, "/p/support/", **look)
    addresses = {
        "list": "drafts/",
        "new": "drafts/new",
        "prompt": f"drafts/{made[1].pk}/",
        "answer": f"drafts/{answer.pk}/",
        "approved": f"drafts/{made[0].pk}/",
        "unfit": f"drafts/{made[-1].pk}/",
        "prompts": "prompts/",
    }
    for name, address in addresses.items():
        page.goto(f"/p/support/{address}")
        if name == "prompt":
            page.keyboard.press("e")
        assert_readable(page)
