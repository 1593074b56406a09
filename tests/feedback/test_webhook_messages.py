"""What webhooks hear of judgements and campaigns, whatever path changed them."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from accounts.models import Event, Project, User, Webhook, WebhookMessage
from feedback import assignment, services
from feedback.assignment import Answer
from feedback.models import Campaign


@pytest.fixture
def webhook(project: Project) -> Webhook:
    return Webhook.objects.create(
        project=project, url="https://example.com/", events=list(Event), secret=""
    )


def judge(campaign: Campaign, annotator: User) -> str:
    """Judge one task; return the judgement's id as the outside knows it."""
    task = assignment.claim(campaign=campaign, annotator=annotator)
    assert task is not None
    judgement = assignment.submit(
        slot_id=task.slot.pk,
        token=task.slot.token,
        client_id=task.client_id,
        annotator=annotator,
        answer=Answer(ranking=[[response.pk] for response in task.responses]),
    )
    return str(judgement.client_id)


def told() -> list[tuple[str, object]]:
    """Return each event with the judgement or the campaign that it is about."""
    rows = WebhookMessage.objects.order_by("id").values_list("event", "data")
    return [(event, data.get("judgement", data["campaign"])) for event, data in rows]


def test_it_tells_of_a_judgement_and_of_its_undoing(
    campaign: Campaign, annotator: User, webhook: Webhook
) -> None:
    judgement = judge(campaign, annotator)
    assignment.undo(campaign=campaign, annotator=annotator)
    assert told() == [("judgement.created", judgement), ("judgement.retracted", judgement)]
    assert len(set(WebhookMessage.objects.values_list("key", flat=True))) == 2


def test_it_tells_each_judgement_once_however_often_it_is_sent(
    campaign: Campaign, annotator: User, webhook: Webhook
) -> None:
    task = assignment.claim(campaign=campaign, annotator=annotator)
    assert task is not None
    answer = Answer(ranking=[[response.pk] for response in task.responses])
    for _ in range(2):
        assignment.submit(
            slot_id=task.slot.pk,
            token=task.slot.token,
            client_id=task.client_id,
            annotator=annotator,
            answer=answer,
        )
    assert len(told()) == 1


@pytest.mark.parametrize("changes", [{"active": False}, {"events": ["alias.moved"]}])
def test_it_tells_nobody_who_does_not_ask(
    campaign: Campaign, annotator: User, webhook: Webhook, changes: dict[str, object]
) -> None:
    Webhook.objects.update(**changes)
    judge(campaign, annotator)
    assert told() == []


def test_it_tells_of_a_campaigns_states(campaign: Campaign, owner: User, webhook: Webhook) -> None:
    for state in (Campaign.State.PAUSED, Campaign.State.OPEN, Campaign.State.CLOSED):
        services.set_campaign_state(campaign=campaign, state=state, by=owner)
        services.set_campaign_state(campaign=campaign, state=state, by=owner)
    names = ["campaign.paused", "campaign.opened", "campaign.closed"]
    assert told() == [(name, campaign.pk) for name in names]


@pytest.mark.django_db(transaction=True)  # each statement with a time of its own
def test_it_tells_of_a_complete_campaign_once(
    make_campaign: Callable[..., Campaign], annotator: User, webhook: Webhook
) -> None:
    campaign = make_campaign(items=2, judgements_per_item=1)
    judge(campaign, annotator)
    assert services.tell_completed_campaigns() == 0
    judge(campaign, annotator)
    assert services.tell_completed_campaigns() == 1
    assert services.tell_completed_campaigns() == 0
    assert told()[-1] == ("campaign.completed", campaign.pk)
    assignment.undo(campaign=campaign, annotator=annotator)
    assert services.tell_completed_campaigns() == 0
    judge(campaign, annotator)
    assert services.tell_completed_campaigns() == 1
