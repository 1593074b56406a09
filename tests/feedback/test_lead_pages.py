"""Pages of a lead: prompts, campaigns, and what people said of answers."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import reverse
from pytest_django import DjangoAssertNumQueries

from accounts.models import Project, User
from feedback import quality
from feedback.assignment import Answer, claim, submit
from feedback.extras import SAFETY, Wanted, stored
from feedback.forms_lead import parse_prompts
from feedback.models import Campaign, CompletionFeedback, Prompt
from feedback.services import add_prompts, give_feedback
from inference.models import Completion, Version

Login = Callable[[User], Client]
LEAD_PAGES = ["prompts", "campaigns", "campaign_new", "feedback_list"]
ONE_CAMPAIGN = ["campaign", "campaign_progress"]


def url(name: str, project: Project, *args: Any) -> str:
    return reverse(name, args=[project.slug, *args])


@pytest.fixture
def completion(project: Project, base_version: Version, annotator: User) -> Completion:
    return Completion.objects.create(
        project=project,
        version=base_version,
        requested_model="production",
        source=Completion.Source.CHAT,
        messages=[{"role": "user", "content": "Where is my parcel?"}],
        text="In the post.",
        created_by=annotator,
    )


def judge(campaign: Campaign, annotator: User, *, leftmost: bool = True, seconds: float = 4) -> int:
    """Rank every item with the leftmost (or rightmost) response best; return how many."""
    count = 0
    while (task := claim(campaign=campaign, annotator=annotator)) is not None:
        ids = [response.pk for response in task.responses]
        submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=Answer(
                ranking=[[one] for one in (ids if leftmost else ids[::-1])], seconds=seconds
            ),
        )
        count += 1
    return count


@pytest.mark.parametrize("name", LEAD_PAGES)
def test_it_is_open_to_leads_only(
    name: str,
    project: Project,
    login: Login,
    stranger: User,
    annotator: User,
    lead: User,
    owner: User,
) -> None:
    address = url(name, project)
    seen = [login(user).get(address).status_code for user in (stranger, annotator, lead, owner)]
    assert seen == [404, 403, 200, 200]
    assert Client().get(address).status_code == 302


@pytest.mark.parametrize("name", ONE_CAMPAIGN)
def test_it_shows_a_campaign_to_its_leads_only(
    name: str, campaign: Campaign, login: Login, stranger: User, annotator: User, lead: User
) -> None:
    address = url(name, campaign.project, campaign.pk)
    seen = [login(user).get(address).status_code for user in (stranger, annotator, lead)]
    assert seen == [404, 403, 200]


def test_it_hides_campaigns_of_other_projects(
    make_campaign: Callable[..., Campaign],
    project: Project,
    stranger: User,
    lead: User,
    login: Login,
) -> None:
    elsewhere = Project.objects.visible_to(stranger).get()
    foreign = make_campaign(of=elsewhere, items=1)
    assert login(lead).get(url("campaign", project, foreign.pk)).status_code == 404
    answer = login(lead).post(url("campaign_state", project, foreign.pk), {"state": "closed"})
    assert answer.status_code == 404


# Prompts


def test_it_adds_pasted_prompts(project: Project, lead: User, login: Login) -> None:
    lines = [
        "Why is the sky blue?",
        "",
        '[{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?"}]',
        '{"messages": [{"role": "user", "content": "How?"}]}',
        '{"prompt": "Who?"}',
    ]
    form = {"prompts": "\r\n".join(lines), "tags": "sky, short, sky"}
    answer = login(lead).post(url("prompts", project), form, follow=True)
    assert "4 prompts added." in answer.content.decode()
    assert [prompt.last_turn for prompt in project.prompts.all()] == [
        "Why is the sky blue?",
        "Why?",
        "How?",
        "Who?",
    ]
    assert project.prompts.first().tags == ["sky", "short"]  # type: ignore[union-attr]


def test_it_says_what_was_there_already(project: Project, lead: User, login: Login) -> None:
    add_prompts(project=project, prompts=["Why?"])
    answer = login(lead).post(url("prompts", project), {"prompts": "Why?\nHow?"}, follow=True)
    assert "1 prompt added. 1 prompt were there already" in answer.content.decode()


def test_it_names_every_line_in_error_and_keeps_the_text(
    project: Project, lead: User, login: Login
) -> None:
    text = 'Good line\n{"role": "user"\n[{"role": "assistant", "content": "Hi"}]'
    answer = login(lead).post(url("prompts", project), {"prompts": text})
    page = answer.content.decode()
    assert answer.status_code == 400
    assert "Line 2 begins like JSON but is not" in page
    assert "Line 3: The last message of a prompt must be the user&#x27;s." in page
    assert "Good line" in page
    assert not Prompt.objects.exists()


def test_it_reads_text_that_only_looks_a_little_like_json() -> None:
    prompts, errors = parse_prompts('"Quoted"\n{}\n[]')
    assert [messages[0]["content"] for messages in prompts] == ['"Quoted"']
    assert [error[:6] for error in errors] == ["Line 2", "Line 3"]


def test_it_searches_prompts_and_filters_by_tag(project: Project, lead: User, login: Login) -> None:
    add_prompts(project=project, prompts=['She said "naïve" twice', "Plain"], tags=["a"])
    add_prompts(project=project, prompts=["Other"], tags=["b"])
    client, address = login(lead), url("prompts", project)
    found = client.get(address, {"q": '"naïve"'}).content.decode()
    assert "twice" in found
    assert "Plain" not in found
    tagged = client.get(address, {"tag": "b"}).content.decode()
    assert "Other" in tagged
    assert "Plain" not in tagged


@pytest.mark.parametrize("name", LEAD_PAGES)
def test_it_bears_any_address(name: str, project: Project, lead: User, login: Login) -> None:
    odd = dict.fromkeys(("q", "tag", "sort", "page", "kind", "version", "state"), "\x00'\"%_\\")
    assert login(lead).get(url(name, project), odd).status_code == 200


def test_it_lists_prompts_in_few_queries(
    make_campaign: Callable[..., Campaign],
    lead: User,
    login: Login,
    project: Project,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    make_campaign(items=20)
    client = login(lead)
    # session, user, membership, tags, count, page, projects
    with django_assert_num_queries(7):
        client.get(url("prompts", project), {"sort": "-used"})


# Campaigns


def campaign_form(version: Version, **changes: Any) -> dict[str, Any]:
    form = {
        "name": "Tone",
        "kind": "ranking",
        "prompts": "",
        "responses_per_item": 4,
        "judgements_per_item": 3,
        "queue_order": "least_judged",
        "seed": 7,
        "instructions": "Be *brief*.",
        f"v{version.pk}-use": "on",
        f"v{version.pk}-temperature": "0.8",
        f"v{version.pk}-top_p": "0.9",
        f"v{version.pk}-max_tokens": "64",
    }
    return form | changes


def test_it_makes_a_campaign(
    project: Project, base_version: Version, lead: User, login: Login
) -> None:
    add_prompts(project=project, prompts=["One?", "Two?"], tags=["first"])
    add_prompts(project=project, prompts=["Three?"])
    form = campaign_form(base_version, prompts="first")
    answer = login(lead).post(url("campaign_new", project), form)
    campaign = Campaign.objects.get()
    assert answer["Location"] == url("campaign", project, campaign.pk)
    assert campaign.items.count() == 2
    assert campaign.created_by == lead
    assert campaign.sources == [
        {"version": base_version.pk, "temperature": 0.8, "top_p": 0.9, "max_tokens": 64}
    ]


def test_it_makes_a_campaign_that_asks_for_more(
    project: Project, base_version: Version, lead: User, login: Login
) -> None:
    add_prompts(project=project, prompts=["One?"])
    form = campaign_form(
        base_version,
        kind="rating",
        responses_per_item=1,
        helpsteer="on",
        scales="Tone | rude | kind | 3\n",
        safety="on",
        reasons="Too long\n",
        correction="required",
    )
    client = login(lead)
    assert client.post(url("campaign_new", project), form).status_code == 302
    asked = stored(Campaign.objects.get().extras)
    assert [scale.key for scale in asked.ratings][4:] == ["verbosity", "tone"]
    assert (asked.safety, asked.correction) == (SAFETY, Wanted.REQUIRED)
    page = client.get(url("campaign", project, Campaign.objects.get().pk)).content.decode()
    assert "Too long" in page
    refused = client.post(url("campaign_new", project), form | {"scales": "Tone | a | b | many"})
    assert "are a number from 2 to 7" in refused.content.decode()


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"name": ""}, "This field is required."),
        ({"responses_per_item": 1}, "A ranking needs at least two responses."),
        ({"prompts": "unknown"}, "Select a valid choice."),
        ({"temperature": "9"}, "less than or equal to 2"),
        ({"use": ""}, "Choose at least one version to write the responses."),
    ],
)
def test_it_refuses_a_campaign_and_keeps_the_form(
    changes: dict[str, Any],
    sentence: str,
    project: Project,
    base_version: Version,
    lead: User,
    login: Login,
) -> None:
    add_prompts(project=project, prompts=["One?"])
    changes = {
        f"v{base_version.pk}-{key}" if key in ("temperature", "use") else key: value
        for key, value in changes.items()
    }
    form = campaign_form(base_version, **changes)
    answer = login(lead).post(url("campaign_new", project), form)
    page = answer.content.decode()
    assert answer.status_code == 400
    assert sentence in page
    assert "Be *brief*." in page
    assert not Campaign.objects.exists()


def test_it_asks_for_prompts_first(project: Project, lead: User, login: Login) -> None:
    page = login(lead).get(url("campaign_new", project)).content.decode()
    assert "First, prompts" in page
    assert 'name="kind"' not in page


def test_it_lists_campaigns_in_few_queries(
    make_campaign: Callable[..., Campaign],
    lead: User,
    login: Login,
    project: Project,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for number in range(5):
        make_campaign(name=f"Campaign {number}", items=2)
    client = login(lead)
    # session, user, membership, count, page, projects
    with django_assert_num_queries(6):
        client.get(url("campaigns", project))


def test_it_sorts_and_filters_campaigns_by_the_address(
    make_campaign: Callable[..., Campaign], lead: User, login: Login, project: Project
) -> None:
    make_campaign(name="Beta", items=1)
    closed = make_campaign(name="Alpha", items=1)
    Campaign.objects.filter(pk=closed.pk).update(state=Campaign.State.CLOSED)
    client, address = login(lead), url("campaigns", project)
    page = client.get(address, {"sort": "name"}).content.decode()
    assert page.index("Alpha") < page.index("Beta")
    assert 'aria-sort="ascending"' in page
    page = client.get(address, {"state": "closed", "sort": "nonsense"}).content.decode()
    assert "Alpha" in page
    assert "Beta" not in page


def test_it_polls_with_the_very_fragment_of_the_page(
    campaign: Campaign, lead: User, login: Login
) -> None:
    Campaign.objects.filter(pk=campaign.pk).update(state=Campaign.State.GENERATING, generated=1)
    client = login(lead)
    page = client.get(url("campaign", campaign.project, campaign.pk)).content.decode()
    fragment = client.get(url("campaign_progress", campaign.project, campaign.pk))
    assert fragment.content.decode().strip() in page
    assert 'hx-trigger="every 2s"' in page


def test_it_stops_polling_once_nothing_moves(campaign: Campaign, lead: User, login: Login) -> None:
    Campaign.objects.filter(pk=campaign.pk).update(state=Campaign.State.CLOSED)
    page = login(lead).get(url("campaign", campaign.project, campaign.pk)).content.decode()
    assert "hx-trigger" not in page


def test_it_pauses_and_opens_a_campaign(campaign: Campaign, lead: User, login: Login) -> None:
    client, address = login(lead), url("campaign_state", campaign.project, campaign.pk)
    for state in ("paused", "open", "closed"):
        assert client.post(address, {"state": state}).status_code == 302
        campaign.refresh_from_db()
        assert campaign.state == state


def test_it_refuses_to_open_what_is_not_generated(
    campaign: Campaign, lead: User, login: Login
) -> None:
    Campaign.objects.filter(pk=campaign.pk).update(state=Campaign.State.GENERATING)
    address = url("campaign_state", campaign.project, campaign.pk)
    answer = login(lead).post(address, {"state": "open"})
    assert answer.status_code == 409
    assert "The responses of this campaign are not ready yet." in answer.content.decode()
    assert login(lead).post(address, {"state": "burnt"}).status_code == 400


def test_it_restarts_a_failed_generation(campaign: Campaign, lead: User, login: Login) -> None:
    Campaign.objects.filter(pk=campaign.pk).update(state="failed", reason="The engine was down.")
    client, address = login(lead), url("campaign", campaign.project, campaign.pk)
    assert "The engine was down." in client.get(address).content.decode()
    client.post(url("campaign_restart", campaign.project, campaign.pk))
    campaign.refresh_from_db()
    assert campaign.state == Campaign.State.GENERATING


def test_it_changes_nothing_by_get(campaign: Campaign, lead: User, login: Login) -> None:
    for name in ("campaign_state", "campaign_restart"):
        answer = login(lead).get(url(name, campaign.project, campaign.pk))
        assert answer.status_code == 405


def test_it_shows_how_annotators_judge(
    make_campaign: Callable[..., Campaign],
    annotator: User,
    second_annotator: User,
    lead: User,
    login: Login,
) -> None:
    campaign = make_campaign(items=6, responses=2, kind="pairwise")
    assert judge(campaign, annotator, leftmost=True, seconds=3) == 6
    judge(campaign, second_annotator, leftmost=False, seconds=9)
    anna, ben = quality.annotators(campaign)
    assert (anna.username, anna.judgements, anna.median_seconds) == ("anna", 6, 3)
    assert anna.left_lean is not None
    assert (anna.left_lean.value, anna.left_lean.n) == (1.0, 6)
    assert anna.left_lean.low == pytest.approx(0.6097, abs=1e-4)  # Wilson: 1 / (1 + 1.96² / 6)
    assert ben.left_lean is not None
    assert ben.left_lean.value == 0
    page = login(lead).get(url("campaign", campaign.project, campaign.pk)).content.decode()
    assert "even: 50 %" in page
    assert "95 % interval 61 % to 100 %" in page


def test_it_counts_no_lean_where_the_best_is_a_tie(
    make_campaign: Callable[..., Campaign], annotator: User
) -> None:
    campaign = make_campaign(items=1, responses=3, judgements_per_item=1)
    task = claim(campaign=campaign, annotator=annotator)
    assert task is not None
    first, second, third = [response.pk for response in task.responses]
    answer = Answer(ranking=[[first, second], [third]])
    submit(
        slot_id=task.slot.pk,
        token=task.slot.token,
        client_id=task.client_id,
        annotator=annotator,
        answer=answer,
    )
    (row,) = quality.annotators(campaign)
    assert row.left_lean is None
    assert row.median_seconds is None


# Feedback


def test_it_lists_feedback_by_what_the_address_says(
    completion: Completion, annotator: User, lead: User, login: Login
) -> None:
    give_feedback(completion=completion, user=annotator, thumb=1, comment="Lovely")
    give_feedback(completion=completion, user=annotator, complaint=True, comment="Wrong post")
    client, address = login(lead), url("feedback_list", completion.project)
    page = client.get(address).content.decode()
    assert "Lovely" in page
    assert "Wrong post" in page
    page = client.get(address, {"kind": "complaint"}).content.decode()
    assert "Lovely" not in page
    assert "Wrong post" in page
    page = client.get(address, {"q": "lovely", "version": "0", "source": "chat"}).content.decode()
    assert "Lovely" in page
    assert "Wrong post" not in page
    assert "Nothing matches" in client.get(address, {"version": "3"}).content.decode()


def test_it_lists_feedback_in_few_queries(
    completion: Completion,
    annotator: User,
    lead: User,
    login: Login,
    django_assert_num_queries: DjangoAssertNumQueries,
) -> None:
    for number in range(6):
        give_feedback(completion=completion, user=annotator, comment=f"Note {number}")
    client = login(lead)
    # session, user, membership, kinds, count, page, versions, projects
    with django_assert_num_queries(9):
        client.get(url("feedback_list", completion.project))


def test_it_takes_feedback_on_ones_own_answer(
    completion: Completion, annotator: User, login: Login
) -> None:
    client, address = login(annotator), url("completion", completion.project, completion.pk)
    answer = client.post(address, {"thumb": "-1", "correction": "On your step."})
    assert answer.status_code == 302
    said = CompletionFeedback.objects.get()
    assert (said.thumb, said.correction, said.user) == (-1, "On your step.", annotator)
    assert "On your step." in client.get(address).content.decode()


def test_it_refuses_empty_and_endless_feedback(
    completion: Completion, annotator: User, login: Login
) -> None:
    client, address = login(annotator), url("completion", completion.project, completion.pk)
    assert client.post(address, {}).status_code == 400
    answer = client.post(address, {"comment": "x" * 10_001, "correction": "keep me"})
    assert answer.status_code == 400
    assert "keep me" in answer.content.decode()
    assert not CompletionFeedback.objects.exists()


def test_it_shows_annotators_only_their_own_chats(
    completion: Completion,
    second_annotator: User,
    annotator: User,
    lead: User,
    stranger: User,
    login: Login,
) -> None:
    address = url("completion", completion.project, completion.pk)
    users = (stranger, second_annotator, annotator, lead)
    assert [login(user).get(address).status_code for user in users] == [404, 404, 200, 200]
    # What somebody judges must not tell them which model wrote it.
    Completion.objects.filter(pk=completion.pk).update(source=Completion.Source.CANDIDATE)
    assert login(annotator).get(address).status_code == 404


def test_it_escapes_what_people_and_models_wrote(
    completion: Completion, annotator: User, lead: User, login: Login
) -> None:
    script = "<script>alert(1)</script>"
    Completion.objects.filter(pk=completion.pk).update(
        text=script, messages=[{"role": "user", "content": script}]
    )
    give_feedback(completion=completion, user=annotator, comment=script, correction=script)
    client = login(lead)
    for address in (
        url("completion", completion.project, completion.pk),
        url("feedback_list", completion.project),
    ):
        page = client.get(address).content.decode()
        assert "alert(1)" in page
        assert script not in page
    assert not re.search(r"<script(?![^>]*src=)", page)


def test_it_keeps_the_very_json_of_a_conversation(
    project: Project, lead: User, login: Login
) -> None:
    messages = [{"role": "user", "content": "Zeile 1\nZeile 2 – ‮rtl‬"}]
    login(lead).post(url("prompts", project), {"prompts": json.dumps(messages)})
    assert Prompt.objects.get().messages == messages
