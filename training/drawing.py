"""Lay a lineage out in columns, made-of to the left, for a drawing in SVG."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from training.lineage import Edge, Graph, Node

BOX_WIDTH, BOX_HEIGHT = 176, 52
COLUMN_GAP, ROW_GAP, MARGIN = 56, 14, 8
# Beyond this a drawing explains nothing; the list below it always has everything.
MAX_DRAWN = 120
LABEL_CHARACTERS = 22


@dataclass(frozen=True, kw_only=True)
class Box:
    """A node with the place of its upper left corner."""

    node: Node
    label: str
    address: str
    x: int
    y: int
    focus: bool

    @property
    def text_x(self) -> int:
        return self.x + 12

    @property
    def label_y(self) -> int:
        return self.y + 22

    @property
    def note_y(self) -> int:
        return self.y + 40


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """Boxes, and the paths of the lines between them as SVG's ``d``."""

    width: int
    height: int
    box_width: int
    box_height: int
    boxes: list[Box]
    paths: list[str]


def columns_of(nodes: Sequence[Node], edges: Sequence[Edge]) -> dict[str, int]:
    """Return each node's column: one right of the furthest that it was made of.

    Lines that would close a circle (the same training again gives the same version) are passed
    over after as many rounds as there are nodes.
    """
    columns = {node.name: 0 for node in nodes}
    for _ in nodes:
        moved = False
        for edge in edges:
            right = min(columns[edge.source] + 1, len(nodes))
            if columns[edge.target] < right:
                columns[edge.target], moved = right, True
        if not moved:
            break
    return columns


def draw(graph: Graph, address: Callable[[Node], str]) -> Drawing | None:
    """Return where everything goes and leads to, or None when there is too much to draw."""
    if len(graph.nodes) > MAX_DRAWN:
        return None
    columns = columns_of(graph.nodes, graph.edges)
    stacks: list[list[Node]] = [[] for _ in range(max(columns.values(), default=0) + 1)]
    for node in graph.nodes:
        stacks[columns[node.name]].append(node)
    stacks = [stack for stack in stacks if stack]
    rows: dict[str, float] = {}
    for stack in stacks:
        stack.sort(key=lambda node: _mean_row(node, graph.edges, rows))
        rows |= {node.name: float(row) for row, node in enumerate(stack)}
    tallest = max(map(len, stacks), default=0)
    height = tallest * (BOX_HEIGHT + ROW_GAP) - ROW_GAP + 2 * MARGIN
    boxes: dict[str, Box] = {}
    for column, stack in enumerate(stacks):
        x = MARGIN + column * (BOX_WIDTH + COLUMN_GAP)
        top = (height - len(stack) * (BOX_HEIGHT + ROW_GAP) + ROW_GAP) // 2
        for row, node in enumerate(stack):
            boxes[node.name] = Box(
                node=node,
                label=_short(node.label),
                address=address(node),
                x=x,
                y=top + row * (BOX_HEIGHT + ROW_GAP),
                focus=node.name == graph.focus,
            )
    return Drawing(
        width=len(stacks) * (BOX_WIDTH + COLUMN_GAP) - COLUMN_GAP + 2 * MARGIN,
        height=height,
        box_width=BOX_WIDTH,
        box_height=BOX_HEIGHT,
        boxes=list(boxes.values()),
        paths=[_path(boxes[edge.source], boxes[edge.target]) for edge in graph.edges],
    )


def _mean_row(node: Node, edges: Sequence[Edge], rows: Mapping[str, float]) -> float:
    """Return the mean row of what the node was made of, so that lines cross little."""
    above = [
        rows[edge.source] for edge in edges if edge.target == node.name and edge.source in rows
    ]
    return sum(above) / len(above) if above else 0.0


def _path(source: Box, target: Box) -> str:
    start, end = source.x + BOX_WIDTH, target.x
    start_y, end_y = source.y + BOX_HEIGHT // 2, target.y + BOX_HEIGHT // 2
    middle = (start + end) // 2
    return f"M{start} {start_y}C{middle} {start_y} {middle} {end_y} {end} {end_y}"


def _short(label: str) -> str:
    flat = " ".join(label.split())
    return flat if len(flat) <= LABEL_CHARACTERS else flat[: LABEL_CHARACTERS - 1] + "…"
