"""The gate: a version is proposed only if it was shown to beat what serves now.

``inference.services.promote`` asks ``check_promotion`` through ``settings.PROMOTION_GATE``, so
pages, REST and the command line all pass here. An admin may overrule with a written reason, which
the alias ledger keeps.
"""

from __future__ import annotations

from dataclasses import dataclass

from inference.models import AliasName, Version
from inference.services import Verdict
from training.models import Evaluation


@dataclass(frozen=True, kw_only=True)
class Standing:
    """Where a version stands against a champion, and on what evidence."""

    proposed: bool
    sentence: str
    evaluation: Evaluation | None = None


def standing(*, version: Version, champion: Version) -> Standing:
    """Say whether the newest comparison of the two shows that the version is better."""
    if version.pk == champion.pk:
        return Standing(proposed=False, sentence=f"{version.name} serves already.")
    found = (
        Evaluation.objects.filter(
            challenger=version, champion=champion, state=Evaluation.State.DONE
        )
        .order_by("-pk")
        .first()
    )
    if found is None:
        return Standing(
            proposed=False, sentence=f"{version.name} has not been compared with {champion.name}."
        )
    share = found.result["win_rate"]
    interval = f"{share['low'] * 100:.0f} % to {share['high'] * 100:.0f} %"
    proposed = share["low"] > 0.5
    verdict = "beats" if proposed else "is not shown to beat"
    sentence = (
        f"{version.name} {verdict} {champion.name}: it wins {share['value'] * 100:.0f} % of "
        f"{share['n']:,} comparisons (95 % interval {interval})."
    )
    return Standing(
        proposed=proposed, sentence=f"{sentence}{_fragile(found, proposed)}", evaluation=found
    )


def _fragile(evaluation: Evaluation, proposed: bool) -> str:
    """Say how little would turn the decision round."""
    found = evaluation.result.get("fragility") or {}
    turned = found.get("prompts")
    if turned is None:
        return ""
    prompts = "one prompt" if turned == 1 else f"{turned} prompts"
    return f" {prompts.capitalize()} of {found['of']} judged the other way would " + (
        "undo that." if proposed else "show it."
    )


def proposal(version: Version) -> Standing:
    """Return a version's standing against what serves in its project's production."""
    champion = Version.objects.filter(project=version.project_id).in_production().first()
    if champion is None:
        return Standing(proposed=True, sentence="Nothing serves in production yet.")
    return standing(version=version, champion=champion)


def check_promotion(*, version: Version, alias_name: str) -> Verdict:
    """Return the gate's verdict on a promotion; trying something as canary needs no proof."""
    if alias_name != AliasName.PRODUCTION:
        return Verdict(proposed=True, sentence="A canary is there to be tried.")
    found = proposal(version)
    return Verdict(proposed=found.proposed, sentence=found.sentence)
