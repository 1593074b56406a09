"""Template tags and filters of every page: navigation, safe Markdown, states and numbers."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

import nh3
from django import template
from django.template import Context
from django.urls import NoReverseMatch, reverse
from django.utils.html import escape, format_html
from django.utils.safestring import SafeString, mark_safe
from markdown_it import MarkdownIt

from accounts.models import Role

register = template.Library()

# Parsing is linear in practice, but nobody reads this much as formatted text.
MAX_MARKDOWN = 100_000
_TAGS = "p br hr h4 h5 h6 ul ol li blockquote pre code em strong s a table thead tbody tr th td"
ALLOWED_TAGS = set(_TAGS.split())
ALLOWED_ATTRIBUTES = {"a": {"href", "title"}, "ol": {"start"}}

STATE_KINDS = {
    "good": {
        "open",
        "ready",
        "succeeded",
        "done",
        "production",
        "passed",
        "active",
        "proposed",
        "promoted",
    }
    | {"delivered", "approved"},
    "busy": {
        "generating",
        "queued",
        "building",
        "running",
        "leased",
        "loading",
        "exporting",
        "training",
        "evaluating",
    }
    | {"pending"},
    "warn": {"paused", "interrupted", "canary", "expired", "complaint", "stale"},
    "bad": {"failed", "revoked", "given up"},
}

# label, page name, further page names under it
CAMPAIGN_PAGES: list[tuple[str, str, set[str]]] = [
    ("Overview", "campaign", {"campaign_state"}),
    ("Dashboard", "campaign_dashboard", set()),
    ("Quality", "campaign_quality", set()),
    ("Judgements", "judgement_list", {"judgement", "skip_list"}),
    ("Leaderboard", "campaign_leaderboard", set()),
    ("Items", "campaign_items", {"campaign_item"}),
    ("Order", "campaign_order", set()),
    ("Gold and trust", "campaign_checks", {"annotator_pause", "pause_lift"}),
    ("Code book", "code_book", set()),
    ("Calibration", "calibrations", {"calibration", "calibration_join"}),
]

# label, page name, least role, further page names under it
NAVIGATION = [
    ("Queue", "queue", Role.ANNOTATOR, {"task", "my_progress"}),
    (
        "Campaigns",
        "campaigns",
        Role.LEAD,
        {"campaign_new", "prompts", "project_leaderboard", "import", "file_import"}
        | {"drafts", "drafts_new", "draft", "drafts_review"}
        | {name for _, page, under in CAMPAIGN_PAGES for name in (page, *under)},
    ),
    (
        "Data",
        "snapshots",
        Role.LEAD,
        {"snapshot", "rendered_row", "lineage", "retract", "retractions", "retraction"},
    ),
    (
        "Runs",
        "runs",
        Role.LEAD,
        {"run", "run_new", "run_cancel", "run_again", "schedules", "schedule"}
        | {"run_compare", "run_pause", "run_resume", "run_priority"}
        | {"rounds", "round", "round_new", "round_cancel"},
    ),
    (
        "Versions",
        "versions",
        Role.LEAD,
        {"version", "version_promote", "alias_roll_back", "alias_ledger"}
        | {"evaluations", "evaluation", "evaluation_new"},
    ),
    ("Chat", "chat", Role.ANNOTATOR, set()),
    ("Feedback", "feedback_list", Role.LEAD, {"completion"}),
    (
        "Settings",
        "tokens",
        Role.ANNOTATOR,
        {"members", "member_role", "member_remove", "webhooks", "webhook"},
    ),
]


@dataclass(frozen=True)
class Link:
    label: str
    url: str
    current: bool


def find_url(name: str, *args: Any) -> str:
    """Return the address of a page, or nothing where that page does not exist."""
    try:
        return reverse(name, args=args)
    except NoReverseMatch:
        return ""


@register.simple_tag
def page_url(name: str, *args: Any) -> str:
    """Give a page's address without failing: ``{% page_url 'runs' project.slug as href %}``."""
    return find_url(name, *args)


@register.simple_tag(takes_context=True)
def nav_links(context: Context) -> list[Link]:
    """Return the project's pages that the member's role may open."""
    membership = context.get("membership")
    if not membership:
        return []
    here = _here(context)
    links = [
        Link(label, find_url(name, membership.project.slug), here == name or here in under)
        for label, name, role, under in NAVIGATION
        if membership.may(role)
    ]
    return [link for link in links if link.url]


@register.simple_tag(takes_context=True)
def campaign_links(context: Context, campaign: Any) -> list[Link]:
    """Return a campaign's pages; thumbs compare nothing, so they have no leaderboard."""
    here = _here(context)
    return [
        Link(label, find_url(name, context["project"].slug, campaign.pk), here in {name, *under})
        for label, name, under in CAMPAIGN_PAGES
        if name != "campaign_leaderboard" or campaign.kind != "thumbs"
    ]


def _here(context: Context) -> str:
    """Return the name of the page that is being shown."""
    match = getattr(context.get("request"), "resolver_match", None)
    return (match.url_name or "") if match else ""


@register.simple_tag(takes_context=True)
def my_projects(context: Context) -> list[Any]:
    """Return the signed-in user's memberships for the project switcher; one query."""
    user = getattr(context.get("request"), "user", None)
    if user is None or not user.is_authenticated:
        return []
    return list(user.memberships.select_related("project").order_by("project__name"))


@register.filter
def may(membership: Any, role: str) -> bool:
    """Say whether the membership includes a role: ``{% if membership|may:'lead' %}``."""
    return bool(membership) and bool(membership.may(Role(role)))


def _parser() -> MarkdownIt:
    # Raw HTML stays text; a picture becomes a link, for a page must not call other hosts.
    parser = MarkdownIt("commonmark", {"html": False, "breaks": True})
    parser.enable(["table", "strikethrough"]).disable("image")
    return parser


_markdown = _parser()


@register.filter
def markdown(text: str | None) -> SafeString:
    """Render text that a person or model wrote: Markdown in, cleaned HTML out.

    Headings begin at h4, below those of the page.
    """
    source = str(text or "")
    if len(source) > MAX_MARKDOWN:
        return format_html('<p class="prose plain">{}</p>', source)
    tokens = _markdown.parse(source)
    for token in tokens:
        if token.type in ("heading_open", "heading_close"):
            token.tag = f"h{min(6, int(token.tag[1]) + 3)}"
    html = _markdown.renderer.render(tokens, _markdown.options, {})
    return mark_safe(
        nh3.clean(
            html,
            tags=ALLOWED_TAGS,
            attributes=ALLOWED_ATTRIBUTES,
            link_rel="noopener noreferrer nofollow",
            set_tag_attribute_values={"a": {"target": "_blank"}},
            url_schemes={"http", "https", "mailto"},
            url_relative="deny",
        )
    )


@register.filter
def state_badge(state: Any) -> SafeString:
    """Show a state as its word with a colour and a mark of its own."""
    word = str(getattr(state, "label", state))
    value = str(getattr(state, "value", state)).lower()
    kind = next((kind for kind, states in STATE_KINDS.items() if value in states), "quiet")
    return format_html('<span class="state state-{}">{}</span>', kind, word)


@register.filter
def number(value: Any, digits: int = 0) -> str:
    """Write 12345.678 as 12,346 (or with ``:2`` as 12,345.68); nothing as a dash."""
    if value is None or value == "":
        return "–"
    try:
        return f"{float(value):,.{int(digits)}f}"
    except (TypeError, ValueError):
        return str(value)


@register.filter
def percent(value: Any, digits: int = 0) -> str:
    """Write 0.756 as 76 %; nothing as a dash."""
    if value is None or value == "":
        return "–"
    try:
        return f"{float(value) * 100:.{int(digits)}f} %"
    except (TypeError, ValueError):
        return str(value)


@register.filter
def method_name(method: str) -> str:
    """Write a training method as the field does: DPO, SimPO, reward model."""
    return {"simpo": "SimPO", "reward": "reward model"}.get(method, method.upper())


@register.filter
def duration(seconds: Any) -> str:
    """Write seconds as people say them: 0.4 s, 42 s, 3 min 20 s, 2 h 5 min."""
    if seconds is None or seconds == "":
        return "–"
    total = float(seconds)
    if total < 10:
        return f"{total:.1f} s"
    whole = round(total)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


@register.filter
def short_digest(digest: str | None, length: int = 12) -> SafeString:
    """Show the start of a digest, the whole of it on hover."""
    if not digest:
        return SafeString("–")
    return format_html('<code title="{}">{}</code>', digest, str(digest)[: int(length)])


@register.filter
def pretty_json(value: Any) -> SafeString:
    """Show a JSON value indented, in a box that scrolls."""
    text = json.dumps(value, ensure_ascii=False, indent=2, sort_keys=True, default=str)
    return format_html("<pre><code>{}</code></pre>", text)


@register.filter
def letter(index: int) -> str:
    """Name the nth response shown, counted from 0: A, B, C …"""
    return chr(ord("A") + int(index))


@register.filter
def excerpt(text: str | None, length: int = 120) -> SafeString:
    """Return the beginning of a text on one line, cut at a word."""
    flat = " ".join(str(text or "").split())
    if len(flat) > int(length):
        flat = flat[: int(length)].rsplit(" ", 1)[0] + " …"
    return SafeString(escape(flat))
