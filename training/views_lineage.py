"""Pages of lineage: a drawing, and the same as a list."""

from __future__ import annotations

from typing import Any

from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import render
from django.urls import reverse
from django.utils.text import Truncator
from django.views.decorators.http import require_GET

from accounts.access import get_membership
from accounts.models import Project, Role
from training.drawing import draw
from training.lineage import Graph, Node
from training.models import SnapshotSource
from training.subjects import find_subject
from training.subjects import lineage as lineage_graph

KINDS = {
    "annotator": "Annotators",
    "prompt": "Prompts",
    "campaign": "Campaigns",
    "judgement": "Judgements",
    "snapshot": "Snapshots",
    "run": "Runs",
    "version": "Versions",
    "alias": "Aliases",
}
WITH_A_PAGE = ("campaign", "snapshot", "run", "version")
RETRACTABLE = ("annotator", "prompt", "judgement")


def address_of(node: Node, project: Project) -> str:
    """Return the page of a node; what has none of its own is shown by its lineage."""
    if node.kind in WITH_A_PAGE:
        return reverse(node.kind, args=[project.slug, node.key])
    if node.kind == "alias":
        return reverse("versions", args=[project.slug])
    return reverse("lineage", args=[project.slug, node.kind, node.key])


def listed(graph: Graph, project: Project) -> list[dict[str, Any]]:
    """Return the nodes by kind, each with its address and what it was made of, to be read out."""
    labels = {node.name: node.label for node in graph.nodes}
    sources: dict[str, list[str]] = {}
    for edge in graph.edges:
        said = Truncator(labels[edge.source]).chars(40)
        if edge.judgements is not None:
            said += f" ({edge.judgements:,} judgements)"
        sources.setdefault(edge.target, []).append(said)
    return [
        {
            "title": title,
            "rows": [
                {
                    "node": node,
                    "address": address_of(node, project),
                    "sources": sources.get(node.name, []),
                }
                for node in graph.nodes
                if node.kind == kind
            ],
        }
        for kind, title in KINDS.items()
        if any(node.kind == kind for node in graph.nodes)
    ]


@login_required
@require_GET
def lineage(request: HttpRequest, slug: str, kind: str, key: str) -> HttpResponse:
    """Show what a thing was made of and what was made of it."""
    membership = get_membership(request, slug, Role.LEAD)
    project = membership.project
    graph = lineage_graph(find_subject(project, kind, key), project)
    focus = next(node for node in graph.nodes if node.name == graph.focus)
    context = {
        "focus": focus,
        "home": address_of(focus, project) if kind in WITH_A_PAGE else "",
        "graph": graph,
        "drawing": draw(graph, lambda node: address_of(node, project)),
        "groups": listed(graph, project),
        "retractable": kind in RETRACTABLE,
        "sources": SnapshotSource.objects.filter(snapshot__pk=int(key))
        .select_related("campaign", "annotator")
        .order_by("-judgements", "annotator__username")[:200]
        if kind == "snapshot"
        else [],
    }
    return render(request, "training/lineage.html", context)
