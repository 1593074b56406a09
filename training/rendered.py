"""Any row of a snapshot as the exact tokens that a base reads, before anything is trained."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accounts.errors import ProductError
from inference.models import BaseModel
from training import preflight, storage
from training.engine.arguments import ArgumentError, Arguments, parse_arguments
from training.engine.errors import RunError
from training.engine.render import Rendered, read_row, render_row
from training.engine.tokens import SAMPLED_ROWS, limits_of
from training.models import Snapshot
from training.options import refuse_method


@dataclass(frozen=True, kw_only=True)
class Preview:
    """A row as it is read, and what becomes of all rows to learn from at the same limits."""

    row: dict[str, Any]
    number: int
    rows: int
    rendered: Rendered
    limits: dict[str, int]
    # in = used + dropped; of a large snapshot they are reckoned from its first rows.
    counts: dict[str, int]
    sampled: bool

    @property
    def before(self) -> int:
        return self.number - 1

    @property
    def after(self) -> int:
        return self.number + 1

    def as_dict(self) -> dict[str, Any]:
        """Return plain JSON values, as REST answers them."""
        return {
            "number": self.number,
            "rows": self.rows,
            "judgement_ids": self.row["judgement_ids"],
            **dataclasses.asdict(self.rendered),
            "truncated": self.rendered.truncated,
            "limits": self.limits,
            "counts": self.counts,
            "sampled": self.sampled,
        }


def preview_row(
    *,
    snapshot: Snapshot,
    part: str,
    number: int,
    base: BaseModel,
    method: str,
    max_length: int | None = None,
    max_prompt_length: int | None = None,
) -> Preview:
    """Return row ``number`` of a part, the first being 1, as training by a method would read it.

    Limits that are not given are the method's own. ProductError says what cannot be shown.
    """
    refuse_method(snapshot.kind, method)
    arguments = _arguments(method, max_length, max_prompt_length)
    try:
        row, rows = read_row(storage.local_file(snapshot, f"{part}.parquet"), number)
    except FileNotFoundError as error:
        raise ProductError(f"The {part} part is gone from the store.") from error
    if row is None:
        raise ProductError(
            f"The {part} part has {rows:,} rows. Choose a number from 1 to {rows:,}."
            if rows
            else f"The {part} part has no rows."
        )
    limits = limits_of(method, arguments)
    try:
        rendered = render_row(
            row,
            Path(base.path),
            max_length=limits["max_length"],
            max_prompt_length=limits["max_prompt_length"],
            single=limits["single"],
        )
        found = preflight.snapshot_tokens(
            snapshot=snapshot, base=base, method=method, arguments=arguments
        )
    except RunError as error:
        raise ProductError(str(error)) from error
    except (OSError, ValueError, KeyError) as error:
        raise ProductError(
            f"The tokenizer of {base.name} cannot be read here. Look at the base's folder."
        ) from error
    used, truncated = found.scaled(found.used), found.scaled(found.truncated)
    total = found.scaled(found.rows)
    return Preview(
        row=row,
        number=number,
        rows=rows,
        rendered=rendered,
        limits={name: limits[name] for name in ("max_length", "max_prompt_length")},
        counts={"in": total, "used": used, "truncated": truncated, "dropped": total - used},
        sampled=total > SAMPLED_ROWS,
    )


def _arguments(method: str, max_length: int | None, max_prompt_length: int | None) -> Arguments:
    given = {"max_length": max_length, "max_prompt_length": max_prompt_length}
    try:
        return parse_arguments(method, {name: one for name, one in given.items() if one})
    except ArgumentError as error:
        raise ProductError(str(error)) from error


def bases_of(snapshot: Snapshot) -> list[BaseModel]:
    """Return the bases that versions of the project start from."""
    return list(BaseModel.objects.filter(versions__project=snapshot.project_id).distinct())
