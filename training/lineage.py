"""Lineage both ways: judgement → snapshot → run → version → alias, and back.

Which judgements a snapshot used is said by its own files (their column ``judgement_id``), so it
stays true whatever is retracted later. Rows are sorted by prompt, so looking one prompt or one
judgement up reads one row group of two narrow columns. How many judgements each annotator gave
each snapshot is counted once, when it is built, into ``SnapshotSource``.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from django.db import connection, transaction
from django.db.models import Q
from django.db.models.functions import Now

from accounts.errors import ProductError
from accounts.models import Project, User
from feedback.models import Campaign, Judgement, Prompt
from inference.models import Alias, Version
from training import leases, storage
from training.models import Run, Snapshot, SnapshotSource

IDS_PER_QUERY = 5_000
UUID_CHARACTERS = 36

_COUNT = """
SELECT campaign_id, annotator_id, count(*), bool_or(retracted_at IS NOT NULL),
       bool_or(erased_at IS NOT NULL)
  FROM feedback_judgement WHERE client_id = ANY(%s::uuid[])
 GROUP BY campaign_id, annotator_id
"""


# What a snapshot used


def parts_of(snapshot: Snapshot) -> list[Path]:
    """Return the files of a snapshot whose rows name judgements."""
    names = [name for name in snapshot.manifest.get("files", {}) if name.endswith(".parquet")]
    return [storage.local_file(snapshot, name) for name in sorted(names)]


def judgement_ids(snapshot: Snapshot) -> Iterator[list[str]]:
    """Yield the client ids of all judgements that gave rows, each once, in pieces.

    A row made by several people names all of them. Rows from answers in use name no judgement.
    """
    for path in parts_of(snapshot):
        with pq.ParquetFile(path) as file:
            column = _id_column(file.schema_arrow)
            seen: set[str] = set()  # of the prompts that the last batch ended with
            for batch in file.iter_batches(columns=["prompt_id", column]):
                table = pa.Table.from_batches([batch])
                ids = {one for one in _ids(table, column) if len(one) == UUID_CHARACTERS} - seen
                # The rows of a prompt stand together, so what may come again is in this batch.
                one_prompt = pc.count_distinct(table["prompt_id"]).as_py() == 1
                seen = seen | ids if one_prompt else ids
                fresh = sorted(ids)
                for start in range(0, len(fresh), IDS_PER_QUERY):
                    yield fresh[start : start + IDS_PER_QUERY]


def _id_column(schema: pa.Schema) -> str:
    return "judgement_ids" if "judgement_ids" in schema.names else "judgement_id"


def _ids(table: pa.Table, column: str) -> list[str]:
    ids = table[column]
    if pa.types.is_list(ids.type):
        ids = pc.list_flatten(ids)
    found: list[str] = pc.unique(ids).to_pylist()
    return found


def count_used(snapshot: Snapshot, *, prompt_id: str, client_id: uuid.UUID | None = None) -> int:
    """Return how many judgements on a prompt a snapshot used, or whether it used that one.

    ``prompt_id`` is the digest of the conversation; only the row groups that hold it are read.
    """
    found = 0
    for path in parts_of(snapshot):
        column = _id_column(pq.read_schema(path))
        table = pq.read_table(path, columns=[column], filters=[("prompt_id", "=", prompt_id)])
        ids = _ids(table, column)
        found += len(ids) if client_id is None else ids.count(str(client_id))
    return found


def record_sources(*, snapshot: Snapshot) -> None:
    """Count once how many judgements each annotator gave each campaign's part of a snapshot.

    What was retracted while it was being built makes it stale at once. The caller holds ``lock``.
    """
    counts: Counter[tuple[int, int]] = Counter()
    stale = erased = False
    with connection.cursor() as cursor:
        for ids in judgement_ids(snapshot):
            cursor.execute(_COUNT, [ids])
            for campaign_id, annotator_id, number, *gone in cursor.fetchall():
                counts[campaign_id, annotator_id] += number
                stale, erased = stale or gone[0], erased or gone[1]
    SnapshotSource.objects.bulk_create(
        [
            SnapshotSource(
                snapshot=snapshot, campaign_id=campaign, annotator_id=who, judgements=number
            )
            for (campaign, who), number in sorted(counts.items())
        ],
        ignore_conflicts=True,
    )
    if stale:
        Snapshot.objects.filter(pk=snapshot.pk).update(stale_at=Now())
    if erased:
        Snapshot.objects.filter(pk=snapshot.pk).update(state=Snapshot.State.ERASED)
    if stale or erased:
        snapshot.refresh_from_db()


def backfill_sources() -> tuple[list[int], dict[int, str]]:
    """Count the sources of ready snapshots that have none, as those from before they were counted.

    Return the ids of those that have some now, and why others cannot be read. What a retraction
    missed for want of the counts goes stale.
    """
    counted, unreadable = [], {}
    uncounted = Snapshot.objects.filter(
        state=Snapshot.State.READY, sources=None, campaigns__isnull=False
    )
    for snapshot in uncounted.distinct().order_by("pk"):
        try:
            with transaction.atomic():
                leases.lock_project(snapshot.project_id)
                record_sources(snapshot=snapshot)
        except (OSError, ProductError) as error:
            unreadable[snapshot.pk] = str(error)
        else:
            if snapshot.sources.exists():
                counted.append(snapshot.pk)
    return counted, unreadable


# What follows from what


@dataclass
class Trace:
    """The ids that hang together, gathered by walking up or down."""

    snapshots: set[int] = field(default_factory=set)
    runs: set[int] = field(default_factory=set)
    versions: set[int] = field(default_factory=set)

    def down(self) -> Trace:
        """Add all that was made of what is there: runs, versions, versions trained further."""
        while True:
            runs = Run.objects.filter(
                Q(snapshot__in=self.snapshots) | Q(start_version__in=self.versions)
            ).values_list("pk", "version_id")
            children = Version.objects.filter(parent__in=self.versions).values_list("pk", flat=True)
            versions = {version for _, version in runs if version is not None} | set(children)
            ids = {run for run, _ in runs}
            if ids <= self.runs and versions <= self.versions:
                return self
            self.runs |= ids
            self.versions |= versions

    def up(self) -> Trace:
        """Add all that it was made of: runs that gave the versions, what they started from."""
        while True:
            runs = Run.objects.filter(
                Q(version__in=self.versions) | Q(pk__in=self.runs)
            ).values_list("pk", "snapshot_id", "start_version_id")
            before = len(self.runs), len(self.snapshots), len(self.versions)
            for run, snapshot, start in runs:
                self.runs.add(run)
                self.snapshots.add(snapshot)
                self.versions.add(start)
            if before == (len(self.runs), len(self.snapshots), len(self.versions)):
                return self

    def merge(self, other: Trace) -> Trace:
        self.snapshots |= other.snapshots
        self.runs |= other.runs
        self.versions |= other.versions
        return self


def snapshots_with(
    project: Project,
    *,
    judgement: Judgement | None = None,
    prompt: Prompt | None = None,
    annotator: User | None = None,
    campaign: Campaign | None = None,
) -> dict[int, int]:
    """Return which built snapshots used it: snapshot id → number of its judgements there."""
    built = Snapshot.objects.filter(project=project, state=Snapshot.State.READY)
    if annotator is not None:
        sources = SnapshotSource.objects.filter(snapshot__project=project, annotator=annotator)
        if campaign is not None:
            sources = sources.filter(campaign=campaign)
        counts: Counter[int] = Counter()
        for snapshot_id, number in sources.values_list("snapshot_id", "judgements"):
            counts[snapshot_id] += number
        return dict(counts)
    if judgement is not None:
        digest = judgement.item.prompt.digest
        candidates = built.filter(campaigns=judgement.campaign_id)
        one = judgement.client_id
        used = {row.pk: count_used(row, prompt_id=digest, client_id=one) for row in candidates}
    else:
        assert prompt is not None
        candidates = built.filter(campaigns__items__prompt=prompt).distinct()
        used = {row.pk: count_used(row, prompt_id=prompt.digest) for row in candidates}
    return {snapshot_id: number for snapshot_id, number in used.items() if number}


# As a graph


@dataclass(frozen=True, kw_only=True)
class Node:
    """One thing in a lineage; ``key`` is its id within its kind."""

    kind: str
    key: str
    label: str
    note: str = ""

    @property
    def name(self) -> str:
        return f"{self.kind}:{self.key}"


@dataclass(frozen=True, kw_only=True)
class Edge:
    """``target`` was made of ``source``; both are names of nodes."""

    source: str
    target: str
    judgements: int | None = None


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A lineage around one thing."""

    focus: str
    nodes: list[Node]
    edges: list[Edge]


def lineage_of(subject: Snapshot | Run | Version | Prompt | Judgement, project: Project) -> Graph:
    """Return what a thing was made of and what was made of it."""
    if isinstance(subject, Snapshot):
        focus, trace = f"snapshot:{subject.pk}", Trace(snapshots={subject.pk}).down()
        trace.merge(Trace(versions=set(trace.versions), runs=set(trace.runs)).up())
        return _graph(focus, trace, project)
    if isinstance(subject, Run):
        below = Trace(versions={subject.version_id} if subject.version_id else set()).down()
        trace = Trace(runs={subject.pk}).up().merge(below)
        return _graph(f"run:{subject.pk}", trace, project)
    if isinstance(subject, Version):
        trace = Trace(versions={subject.pk}).up().merge(Trace(versions={subject.pk}).down())
        return _graph(f"version:{subject.pk}", trace, project)
    if isinstance(subject, Prompt):
        used = snapshots_with(project, prompt=subject)
        return _graph_from(_prompt_node(subject), used, project, above=[])
    used = snapshots_with(project, judgement=subject)
    above = [
        Node(kind="annotator", key=str(subject.annotator_id), label=subject.annotator.username),
        _prompt_node(subject.item.prompt),
        Node(kind="campaign", key=str(subject.campaign_id), label=subject.campaign.name),
    ]
    note = "retracted" if subject.retracted_at else "stands"
    node = Node(kind="judgement", key=str(subject.client_id), label="Judgement", note=note)
    return _graph_from(node, used, project, above=above)


def annotator_lineage(annotator: User, project: Project) -> Graph:
    """Return which snapshots somebody's judgements went into, and what was made of them."""
    used = snapshots_with(project, annotator=annotator)
    given = Judgement.objects.filter(annotator=annotator, campaign__project=project).count()
    label, note = annotator.username, f"{given:,} judgements"
    node = Node(kind="annotator", key=str(annotator.pk), label=label, note=note)
    return _graph_from(node, used, project, above=[])


def _prompt_node(prompt: Prompt) -> Node:
    label = prompt.last_turn[:60] or "erased prompt"
    return Node(kind="prompt", key=str(prompt.pk), label=label)


def _graph_from(node: Node, used: dict[int, int], project: Project, *, above: list[Node]) -> Graph:
    """Return the graph below something smaller than a campaign."""
    below = _graph("", Trace(snapshots=set(used)).down(), project, campaigns=False)
    edges = [Edge(source=each.name, target=node.name) for each in above]
    edges += [
        Edge(source=node.name, target=f"snapshot:{snapshot}", judgements=number)
        for snapshot, number in sorted(used.items())
    ]
    return Graph(focus=node.name, nodes=[*above, node, *below.nodes], edges=edges + below.edges)


def _graph(focus: str, trace: Trace, project: Project, *, campaigns: bool = True) -> Graph:
    """Return nodes and edges of what was gathered; a fixed number of queries."""
    nodes: list[Node] = []
    edges: list[Edge] = []
    snapshots = Snapshot.objects.filter(pk__in=trace.snapshots).order_by("pk")
    if campaigns:
        _add_campaigns(trace, nodes, edges)
    for snapshot in snapshots:
        rows = sum(snapshot.manifest.get("rows", {}).values())
        note = snapshot.standing if snapshot.standing != "ready" else f"{rows:,} rows"
        nodes.append(
            Node(kind="snapshot", key=str(snapshot.pk), label=str(snapshot.label), note=note)
        )
    versions = {
        version.pk: version
        for version in Version.objects.filter(pk__in=trace.versions, project=project)
        if not version.is_base or focus == f"version:{version.pk}"
    }
    joined: set[int] = set()
    for run in Run.objects.filter(pk__in=trace.runs).order_by("pk"):
        node = Node(
            kind="run",
            key=str(run.pk),
            label=f"Run {run.pk}",
            note=f"{run.method.upper()}, {run.state}",
        )
        nodes.append(node)
        if run.snapshot_id in trace.snapshots:
            edges.append(Edge(source=f"snapshot:{run.snapshot_id}", target=node.name))
        if run.start_version_id in versions:
            edges.append(Edge(source=f"version:{run.start_version_id}", target=node.name))
        if run.version_id in versions:
            joined.add(run.version_id)
            edges.append(Edge(source=node.name, target=f"version:{run.version_id}"))
    for pk, version in sorted(versions.items()):
        note = version.method.upper() or "the plain base"
        nodes.append(Node(kind="version", key=str(pk), label=version.name, note=note))
        if pk not in joined and version.parent_id in versions:
            edges.append(Edge(source=f"version:{version.parent_id}", target=f"version:{pk}"))
    for alias in Alias.objects.filter(version__in=versions, project=project):
        nodes.append(Node(kind="alias", key=alias.name, label=alias.name, note="serves now"))
        edges.append(Edge(source=f"version:{alias.version_id}", target=f"alias:{alias.name}"))
    return Graph(focus=focus, nodes=nodes, edges=edges)


def _add_campaigns(trace: Trace, nodes: list[Node], edges: list[Edge]) -> None:
    """Add the campaigns of the snapshots, with who judged and how much went into each snapshot."""
    people: dict[int, set[int]] = {}
    used: Counter[tuple[int, int]] = Counter()
    links = Snapshot.campaigns.through.objects.filter(snapshot__in=trace.snapshots)
    for campaign_id, snapshot_id in links.values_list("campaign_id", "snapshot_id"):
        used[campaign_id, snapshot_id] += 0
    sources = SnapshotSource.objects.filter(snapshot__in=trace.snapshots)
    for row in sources.values_list("campaign_id", "snapshot_id", "annotator_id", "judgements"):
        people.setdefault(row[0], set()).add(row[2])
        used[row[0], row[1]] += row[3]
    names = Campaign.objects.in_bulk({campaign for campaign, _ in used})
    for pk, campaign in sorted(names.items()):
        number = len(people.get(pk, ()))
        note = f"{number:,} annotator{'' if number == 1 else 's'}"
        nodes.append(Node(kind="campaign", key=str(pk), label=campaign.name, note=note))
    edges += [
        Edge(source=f"campaign:{campaign}", target=f"snapshot:{snapshot}", judgements=number)
        for (campaign, snapshot), number in sorted(used.items())
    ]
