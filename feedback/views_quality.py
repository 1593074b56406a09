"""How well a campaign is judged, and which version its judgements prefer: pages and REST."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET
from drf_spectacular.utils import OpenApiParameter, extend_schema
from rest_framework import serializers
from rest_framework.request import Request
from rest_framework.response import Response

from accounts.access import ProjectAPIView, get_membership
from accounts.models import Membership, Role
from feedback import leaderboards, quality
from feedback.api_checks import LeadView
from feedback.models import Campaign
from inference.models import Version

if TYPE_CHECKING:
    from feedback.ratings import Leaderboard, Rating

# What the address may say, what that is called, and what it takes out.
CONTROLS: dict[str, tuple[str, dict[str, bool]]] = {
    "": ("As judged", {}),
    "side": ("Left side taken out", {"side": True}),
    "length": ("Length taken out", {"length": True}),
    "both": ("Both taken out", {"side": True, "length": True}),
}
# A square of names is readable up to here; beyond it the extremes say more.
MOST_IN_SQUARE = 8
MOST_PAIRS_SHOWN = 10


def _campaign(request: HttpRequest, slug: str, pk: int) -> tuple[Membership, Campaign]:
    membership = get_membership(request, slug, Role.LEAD)
    return membership, get_object_or_404(Campaign, project=membership.project, pk=pk)


@login_required
@require_GET
def campaign_quality(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show each annotator's work in numbers, how far they agree, and what they dispute."""
    _, campaign = _campaign(request, slug, pk)
    report = quality.report(campaign)
    names = sorted({row.username for row in report.rows})
    found = {(pair.one, pair.other): pair.agreement for pair in report.pairs}
    found |= {(other, one): shared for (one, other), shared in found.items()}
    square = len(names) <= MOST_IN_SQUARE
    context = {
        "campaign": campaign,
        "report": report,
        "compared": campaign.kind in (Campaign.Kind.PAIRWISE, Campaign.Kind.RANKING),
        "even_share": 1 / campaign.responses_per_item,
        "any_repeats": any(row.consistency for row in report.rows),
        "any_gold": any(row.gold for row in report.rows),
        "names": names,
        "square": [(one, [(other, found.get((one, other))) for other in names]) for one in names]
        if square and report.pairs
        else [],
        "pairs": [] if square else report.pairs[:MOST_PAIRS_SHOWN],
        "more_pairs": 0 if square else max(0, len(report.pairs) - MOST_PAIRS_SHOWN),
    }
    return render(request, "feedback/quality.html", context)


@dataclass(frozen=True, kw_only=True)
class Line:
    """A rating as the page draws it: its places between the ends of the scale, from 0 to 1."""

    rating: Rating
    version: Version | None
    value: float
    low: float
    high: float


def _lines(board: Leaderboard, versions: dict[str, Version]) -> tuple[list[Line], dict[str, float]]:
    """Return the lines, and the scale's ends with where its middle lies."""
    low = min([one.points.low for one in board.ratings], default=0.0)
    high = max([one.points.high for one in board.ratings], default=1.0)
    span = (high - low) or 1.0
    lines = [
        Line(
            rating=one,
            version=versions.get(one.player),
            value=(one.points.value - low) / span,
            low=(one.points.low - low) / span,
            high=(one.points.high - low) / span,
        )
        for one in board.ratings
    ]
    return lines, {"low": low, "high": high, "even": (1000 - low) / span}


@login_required
@require_GET
def campaign_leaderboard(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show the versions that wrote the campaign's responses, best first."""
    membership, campaign = _campaign(request, slug, pk)
    control = _control(request)
    board = leaderboards.of_campaign(campaign, **CONTROLS[control][1])
    context = {"campaign": campaign} | _board_context(membership, board, control)
    return render(request, "feedback/leaderboard.html", context)


@login_required
@require_GET
def project_leaderboard(request: HttpRequest, slug: str) -> HttpResponse:
    """Show the versions that all the project's campaigns compared, best first."""
    membership = get_membership(request, slug, Role.LEAD)
    control = _control(request)
    board = leaderboards.of_project(membership.project, **CONTROLS[control][1])
    context = _board_context(membership, board, control)
    return render(request, "feedback/leaderboard_project.html", context)


def _control(request: HttpRequest) -> str:
    control = request.GET.get("control", "")
    return control if control in CONTROLS else ""


def _board_context(membership: Membership, board: Leaderboard, control: str) -> dict[str, Any]:
    versions = Version.objects.filter(project=membership.project)
    lines, scale = _lines(board, {version.name: version for version in versions})
    return {
        "board": board,
        "lines": lines,
        "scale": scale,
        "control": control,
        "controls": [(key, label) for key, (label, _) in CONTROLS.items()],
    }


# REST


class ShareOutput(serializers.Serializer[Any]):
    value = serializers.FloatField()
    low = serializers.FloatField()
    high = serializers.FloatField()
    n = serializers.IntegerField()


class QualityOutput(serializers.Serializer[Any]):
    """The quality of a campaign as a program sees it."""

    class RowOutput(serializers.Serializer[Any]):
        username = serializers.CharField()
        judgements = serializers.IntegerField()
        median_seconds = serializers.FloatField(allow_null=True)
        left_lean = ShareOutput(allow_null=True)
        kept_order = ShareOutput(allow_null=True)
        rest = ShareOutput(allow_null=True, help_text="Agreement with the other annotators.")
        consistency = ShareOutput(allow_null=True, help_text="Agreement with oneself on repeats.")
        gold = ShareOutput(allow_null=True, help_text="Agreement with known answers.")
        competence = serializers.FloatField(allow_null=True)
        weight = serializers.FloatField(allow_null=True)
        trust = serializers.ChoiceField(choices=["watched", "trusted", "alarm"])
        flags = serializers.ListField(child=serializers.CharField())

    class PairOutput(serializers.Serializer[Any]):
        one = serializers.CharField()
        other = serializers.CharField()
        agreement = ShareOutput()

    class DisputedOutput(serializers.Serializer[Any]):
        item = serializers.IntegerField()
        agreement = serializers.FloatField()
        prompt = serializers.CharField()

    class ScaleOutput(serializers.Serializer[Any]):
        key = serializers.CharField()
        label = serializers.CharField()  # type: ignore[assignment]
        alpha = serializers.FloatField(allow_null=True, help_text="Krippendorff’s, ordinal.")
        responses = serializers.IntegerField(help_text="Rated by two people or more.")

    judgements = serializers.IntegerField()
    used = serializers.IntegerField(help_text="How many of them, the newest, were read.")
    alpha_nominal = serializers.FloatField(allow_null=True)
    alpha_ordinal = serializers.FloatField(allow_null=True)
    false_alarm = serializers.FloatField()
    rows = RowOutput(many=True)
    pairs = PairOutput(many=True)
    disputed = DisputedOutput(many=True)
    scales = ScaleOutput(many=True)


class LeaderboardOutput(serializers.Serializer[Any]):
    """The leaderboard of a campaign or project as a program sees it."""

    class EstimateOutput(serializers.Serializer[Any]):
        value = serializers.FloatField()
        low = serializers.FloatField()
        high = serializers.FloatField()

    class RatingOutput(serializers.Serializer[Any]):
        player = serializers.CharField()
        points = serializers.DictField(child=serializers.FloatField())
        rank = serializers.IntegerField()
        rank_low = serializers.IntegerField()
        rank_high = serializers.IntegerField()
        wins = serializers.IntegerField()
        ties = serializers.IntegerField()
        losses = serializers.IntegerField()
        win_chance = serializers.FloatField()

    ratings = RatingOutput(many=True)
    side = EstimateOutput(allow_null=True)
    length = EstimateOutput(allow_null=True)
    tie_share = serializers.FloatField()
    comparisons = serializers.IntegerField()
    resamples = serializers.IntegerField()
    apart = serializers.BooleanField()


class QualityView(LeadView):
    @extend_schema(responses=QualityOutput)
    def get(self, request: Request, pk: int) -> Response:
        """Say how well a campaign is judged: annotators, agreement, and what is disputed."""
        return Response(asdict(quality.report(self.campaign(pk))))


_CONTROL = OpenApiParameter("control", str, enum=[key for key in CONTROLS if key])


def _asked_control(request: Request) -> dict[str, bool]:
    control = request.query_params.get("control", "")
    if control not in CONTROLS:
        raise serializers.ValidationError("control: side, length or both.")
    return CONTROLS[control][1]


class LeaderboardView(LeadView):
    @extend_schema(parameters=[_CONTROL], responses=LeaderboardOutput)
    def get(self, request: Request, pk: int) -> Response:
        """Order the versions of a campaign, with the left side or length taken out if asked."""
        asked = _asked_control(request)
        return Response(asdict(leaderboards.of_campaign(self.campaign(pk), **asked)))


class ProjectLeaderboardView(ProjectAPIView):
    role = Role.LEAD

    @extend_schema(
        parameters=[_CONTROL, OpenApiParameter("project", str)], responses=LeaderboardOutput
    )
    def get(self, request: Request) -> Response:
        """Order the versions that all the project's campaigns compared, as a campaign's."""
        asked = _asked_control(request)
        return Response(asdict(leaderboards.of_project(self.project(), **asked)))
