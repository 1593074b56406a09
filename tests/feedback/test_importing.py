"""Formats in: what a file says is stored once, whole or not at all."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.test import Client
from django.urls import reverse
from rest_framework.test import APIClient

from accounts.errors import ProductError, TooLarge
from accounts.models import Project, Scope, User
from feedback import importing
from feedback.importing import Layout, import_file, preview, understand
from feedback.models import Campaign, Item, Judgement, Prompt, Response, Slot
from tests.training.test_snapshots import rows, take_snapshot
from training import formats

HH = Path("/work/shared/data/hh_harmless.jsonl.gz")
TALK = "\n\nHuman: Hi\n\nAssistant: Hello.\n\nHuman: Why {n}?\n\nAssistant:"


def as_file(data: bytes | str) -> io.BytesIO:
    return io.BytesIO(data.encode() if isinstance(data, str) else data)


def jsonl(values: list[Any]) -> io.BytesIO:
    return as_file("".join(json.dumps(value) + "\n" for value in values))


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def comparisons(count: int = 12) -> list[dict[str, str]]:
    return [
        {"prompt": f"Why {n}?", "chosen": f"Because {n}.", "rejected": f"No {n}."}
        for n in range(count)
    ]


def table(values: list[dict[str, Any]], delimiter: str = ",") -> io.BytesIO:
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(values[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(values)
    return as_file(text.getvalue())


def parquet(values: list[dict[str, Any]]) -> io.BytesIO:
    file = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(values), file)
    file.seek(0)
    return file


SAME = [user("Hi"), assistant("Hello."), user("Why?")]
LAYOUTS: list[tuple[dict[str, Any], Layout, Any, tuple[str, ...], int | None]] = [
    (
        {"prompt": "Why?", "chosen": "A", "rejected": "B"},
        Layout.COMPARISONS, [user("Why?")], ("A", "B"), None,
    ),
    (
        {"prompt": "Why?", "text": "A", "rejected_text": "B"},
        Layout.COMPARISONS, [user("Why?")], ("A", "B"), None,
    ),
    (
        {"text": f"{TALK.format(n=1)} A", "rejected_text": f"{TALK.format(n=1)} B"},
        Layout.COMPARISONS, [*SAME[:-1], user("Why 1?")], ("A", "B"), None,
    ),
    (
        {"chosen": f"{TALK.format(n=1)} A", "rejected": f"{TALK.format(n=1)} B\n\nB"},
        Layout.COMPARISONS, [*SAME[:-1], user("Why 1?")], ("A", "B\n\nB"), None,
    ),
    (
        {"prompt": TALK.format(n=1), "chosen": " A", "rejected": " B"},
        Layout.COMPARISONS, [*SAME[:-1], user("Why 1?")], ("A", "B"), None,
    ),
    (
        {"prompt": SAME, "chosen": [assistant("A")], "rejected": [assistant("B")]},
        Layout.COMPARISONS, SAME, ("A", "B"), None,
    ),
    (
        {"chosen": [*SAME, assistant("A")], "rejected": [*SAME, assistant("B")]},
        Layout.COMPARISONS, SAME, ("A", "B"), None,
    ),
    (
        {"prompt": "Why?", "chosen": [user("Why?"), assistant("A")],
         "rejected": [user("Why?"), assistant("B")], "score_chosen": 8.0},
        Layout.COMPARISONS, [user("Why?")], ("A", "B"), None,
    ),
    (
        {"input": {"messages": SAME, "tools": [], "parallel_tool_calls": True},
         "preferred_output": [assistant("A")], "non_preferred_output": [assistant("B")]},
        Layout.COMPARISONS, SAME, ("A", "B"), None,
    ),
    (
        {"prompt": "Why?", "completion": "A", "label": False},
        Layout.LABELS, [user("Why?")], ("A",), -1,
    ),
    (
        {"prompt": SAME, "completion": [assistant("A")], "label": True},
        Layout.LABELS, SAME, ("A",), 1,
    ),
    (
        {"instruction": "Add", "input": "1 2", "output": "3"},
        Layout.ANSWERS, [user("Add\n\n1 2")], ("3",), 1,
    ),
    ({"instruction": "Add", "output": "3"}, Layout.ANSWERS, [user("Add")], ("3",), 1),
    ({"messages": [*SAME, assistant("A")]}, Layout.ANSWERS, SAME, ("A",), 1),
    (
        {"messages": [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "A"}]},
        Layout.ANSWERS, [user("Hi")], ("A",), 1,
    ),
    ({"text": "\n\nHuman: Hi\n\nAssistant: A"}, Layout.ANSWERS, [user("Hi")], ("A",), 1),
    ({"prompt": "Why?"}, Layout.PROMPTS, [user("Why?")], (), None),
    ({"text": "Why?"}, Layout.PROMPTS, [user("Why?")], (), None),
    ({"messages": SAME}, Layout.PROMPTS, SAME, (), None),
]  # fmt: skip


@pytest.mark.parametrize(("row", "layout", "prompt", "texts", "thumb"), LAYOUTS)
def test_it_understands_every_layout(
    row: dict[str, Any], layout: Layout, prompt: Any, texts: tuple[str, ...], thumb: int | None
) -> None:
    for file, name in ((jsonl([row]), "x.jsonl"), (parquet([row]), "x.parquet")):
        plan = understand(file, name)
        assert plan.report.errors == []
        assert plan.report.layout == layout
        [entry] = plan.entries
        assert (entry.prompt, entry.texts, entry.thumb) == (prompt, texts, thumb)


def test_it_reads_every_kind_of_file(project: Project) -> None:
    values = comparisons()
    lines = jsonl(values).getvalue()
    files = {
        "a.jsonl": lines,
        "a.JSONL.gz": gzip.compress(lines),
        "a.json": json.dumps(values).encode(),
        "b.json": json.dumps({"rows": values}).encode(),
        "a.csv": table(values).getvalue(),
        "a.csv.gz": gzip.compress(b"\xef\xbb\xbf" + table(values).getvalue()),
        "a.tsv": table(values, "\t").getvalue(),
        "a.parquet": parquet(values).getvalue(),
        "a.parquet.gz": gzip.compress(parquet(values).getvalue()),
    }
    plans = [understand(as_file(data), name).entries for name, data in files.items()]
    assert all(len(plan) == 12 for plan in plans)
    said = [[entry.said for entry in plan] for plan in plans]
    assert all(one == said[0] for one in said)


def test_comparisons_become_judgements_that_snapshots_take(project: Project, lead: User) -> None:
    report, campaign = import_file(
        project=project, by=lead, file=jsonl(comparisons(30)), filename="ours.jsonl", name="Ours"
    )
    assert campaign is not None
    assert (report.rows, report.added, campaign.name) == (30, 30, "Ours")
    assert (campaign.kind, campaign.state) == (Campaign.Kind.PAIRWISE, Campaign.State.CLOSED)
    snapshot = take_snapshot(project, campaign)
    assert snapshot.manifest["ledger"] == {
        "judgements": 30, "exported": 30, "pairs": 30, "excluded": {}
    }  # fmt: skip
    found = {
        (row["prompt"][0]["content"], row["chosen"][0]["content"], row["rejected"][0]["content"])
        for row in rows(snapshot)
    }
    assert found == {tuple(row.values()) for row in comparisons(30)}
    importer = Judgement.objects.first().annotator  # type: ignore[union-attr]
    assert importer.username == "import-support"
    assert not importer.has_usable_password()
    assert not importer.is_active
    left = sum(
        judgement.ranking[0][0] == judgement.shown[0] for judgement in Judgement.objects.all()
    )
    assert 5 < left < 25, "the better answer stands on either side"
    judgement = Judgement.objects.select_related("slot").all()[0]
    shown = [Response.objects.get(pk=one).position for one in judgement.shown]
    assert shown == judgement.slot.order


def test_the_same_file_again_adds_nothing(project: Project, lead: User) -> None:
    def counts() -> list[int]:
        tables: list[Any] = [Campaign, Prompt, Item, Response, Slot, Judgement]
        return [table.objects.count() for table in tables]

    for values in (
        comparisons(),
        [{"prompt": f"{n}?", "completion": "A", "label": bool(n % 2)} for n in range(12)],
        [{"prompt": f"What is {n}?"} for n in range(3)],
    ):
        _, made = import_file(project=project, by=lead, file=jsonl(values), filename="a.jsonl")
        before = counts()
        report, campaign = import_file(
            project=project, by=lead, file=jsonl(values[::-1]), filename="other.jsonl"
        )
        assert campaign == made, "a program that sends it twice goes on all the same"
        assert (report.added, report.known) == (0, len(values))
        assert counts() == before
        more = [*values, values[0] | {"prompt": "One more?"}]
        assert preview(project=project, file=jsonl(more), filename="a.jsonl").report.known == len(
            values
        )


def test_it_names_lines_and_stores_nothing(project: Project, lead: User) -> None:
    lines = jsonl(comparisons()).getvalue().decode().splitlines()
    lines[3] = '{"prompt": "cut'
    lines.insert(5, "")
    lines.append('{"prompt": "Why?", "chosen": "A"}')
    lines.append('{"prompt": "", "chosen": "A\\u0000", "rejected": "B"}')
    lines.append('{"prompt": "Q", "chosen": "A\\ud800", "rejected": "B"}')
    text = "\n".join(lines)
    with pytest.raises(ProductError, match=r"Line 4: This is not JSON.*4 of 15 rows") as refused:
        import_file(project=project, by=lead, file=as_file(text), filename="a.jsonl")
    assert [one["line"] for one in refused.value.extra["errors"]] == [4, 14, 15, 16]
    assert not Judgement.objects.exists()
    assert not Prompt.objects.exists()
    report, _ = import_file(
        project=project, by=lead, file=as_file(text), filename="a.jsonl", skip_errors=True
    )
    assert (report.added, report.error_count) == (11, 4)


def test_csv_errors_name_the_line_where_the_row_begins() -> None:
    text = 'prompt,chosen,rejected\n"Why\n\nnot?",A,B\nHow?,A\nWho?,A,B\n'
    plan = understand(as_file(text), "a.csv")
    assert [entry.line for entry in plan.entries] == [2, 6]
    assert plan.report.errors[0].line == 5
    assert "2 cells" in plan.report.errors[0].message


def test_a_spreadsheet_may_part_its_columns_by_semicolons() -> None:
    text = "prompt;chosen;rejected\nWarum, und wie?;So.;Nein.\n"
    [entry] = understand(as_file(text), "a.csv").entries
    assert "Warum, und wie?" in entry.prompt_json
    [entry] = understand(as_file('prompt,"a;b"\nWhy?,x\n'), "a.csv").entries
    assert "Why?" in entry.prompt_json


def test_it_leaves_out_what_says_nothing_and_names_it() -> None:
    values = [
        *comparisons(3),
        comparisons(1)[0],
        {"prompt": "Why?", "chosen": "A", "rejected": "A"},
        {"prompt": "Why?", "chosen": "A", "rejected": " "},
    ]
    plan = understand(jsonl(values), "a.jsonl")
    assert len(plan.entries) == 3
    assert plan.report.left_out == {
        "the same row stands further up": 1,
        "both answers are the same": 1,
        "an answer is empty": 1,
    }
    assert [one.line for one in plan.report.left_out_lines] == [4, 5, 6]
    other = "\n\nHuman: Hi\n\nAssistant: {}\n\nHuman: {}\n\nAssistant: A"
    row = {"chosen": other.format("Yes.", "X"), "rejected": other.format("No.", "Y")}
    report = understand(jsonl([row]), "a.jsonl").report
    assert report.left_out == {"the conversations differ before the last answer": 1}


def test_fewer_than_ten_comparisons_are_refused(project: Project, lead: User) -> None:
    with pytest.raises(ProductError, match="The file has 9 rows that can be used; 10 are"):
        import_file(project=project, by=lead, file=jsonl(comparisons(9)), filename="a.jsonl")
    report, _ = import_file(
        project=project, by=lead, file=jsonl([{"prompt": "Why?"}]), filename="a.jsonl"
    )
    assert report.added == 1


def test_a_prompt_compared_often_keeps_every_comparison(project: Project, lead: User) -> None:
    values = [{"prompt": "Why?", "chosen": f"A{n}", "rejected": f"B{n}"} for n in range(20)]
    values.append({"prompt": "Why?", "chosen": "B0", "rejected": "A0"})
    report, campaign = import_file(project=project, by=lead, file=jsonl(values), filename="a.jsonl")
    assert campaign is not None
    assert report.added == 21
    assert Item.objects.count() == 1
    assert take_snapshot(project, campaign, heldout=0).manifest["ledger"]["pairs"] == 21
    many = [{"prompt": "How?", "chosen": f"A{n}", "rejected": "B"} for n in range(60)]
    report, _ = import_file(project=project, by=lead, file=jsonl(many), filename="b.jsonl")
    assert report.left_out == {"its prompt has 50 rows already": 10}


def test_a_person_can_say_which_column_is_which(project: Project, lead: User) -> None:
    values = [{"q": f"{n}?", "good": "A", "bad": "B", "note": "x"} for n in range(10)]
    with pytest.raises(ProductError, match="No column is a prompt"):
        understand(jsonl(values), "a.jsonl")
    mapping = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    plan = understand(jsonl(values), "a.jsonl", mapping)
    assert len(plan.entries) == 10
    assert plan.report.unused == ["note"]
    with pytest.raises(ProductError, match="not there: worse"):
        understand(jsonl(values), "a.jsonl", mapping | {"rejected": "worse"})


@pytest.mark.parametrize(
    ("name", "data", "sentence"),
    [
        ("a.xml", b"<a/>", "is none of"),
        ("a.jsonl", b"", "no rows"),
        ("a.jsonl", b'{"prompt": "\xff"}\n', "not UTF-8"),
        ("a.json", b'{"prompt": "a"}\n{"prompt": "b"}', "Is it JSON Lines"),
        ("a.parquet", b"PAR1 no", "Parquet file cannot be read"),
        ("a.jsonl.gz", b"plain", "not what its name says"),
        # A test's name holds these bytes and must be the same in every process: no time in them.
        ("a.jsonl.gz", gzip.compress(b"x" * 1000, mtime=0)[:20], "ends early"),
        ("a.csv", b"a,a\n1,2\n", "same name"),
        ("a.csv", b'a,b\n"1,2\n', "cannot be read"),
        ("a.jsonl", b"[" * 100_000, "Line 1"),
    ],
)
def test_it_refuses_what_it_cannot_read(name: str, data: bytes, sentence: str) -> None:
    with pytest.raises(ProductError, match=sentence):
        understand(as_file(data), name)


def test_it_stops_reading_a_bomb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importing, "MOST_BYTES", 10_000)
    for name in ("a.jsonl.gz", "a.csv.gz"):
        with pytest.raises((TooLarge, ProductError)):
            understand(as_file(gzip.compress(b"prompt\n" * 100_000)), name)


@pytest.mark.parametrize(
    "name",
    ["trl-preference", "trl-preference-standard", "trl-implicit-prompt", "openai-dpo", "csv"],
)
def test_what_we_write_comes_back_as_it_was(
    name: str, project: Project, lead: User, stranger: User
) -> None:
    values = [
        {"prompt": [*SAME[: 2 * (n % 2)], user(f"[{n}]\n\nWhy?")], "chosen": f"A{n}\n",
         "rejected": "B"}
        for n in range(20)
    ]  # fmt: skip
    _, campaign = import_file(project=project, by=lead, file=jsonl(values), filename="a.jsonl")
    assert campaign is not None
    first = take_snapshot(project, campaign, heldout=0)
    written = b"".join(formats.export(first.folder / "train.parquet", name))
    other = Project.objects.visible_to(stranger).get()
    report, again = import_file(
        project=other, by=None, file=as_file(written),
        filename=f"a.{formats.FORMATS[name].extension}",
    )  # fmt: skip
    assert again is not None
    assert (report.added, report.left_out) == (20, {})
    second = take_snapshot(other, again, heldout=0)

    def said(rows: list[dict[str, Any]]) -> set[tuple[str, str, str]]:
        return {(row["prompt_id"], row["chosen_id"], row["rejected_id"]) for row in rows}

    assert said(rows(second)) == said(rows(first))


def test_it_never_judges_in_a_persons_name(project: Project, lead: User) -> None:
    User.objects.create_user("import-support", password="a person's password")
    with pytest.raises(ProductError, match="Rename the person"):
        import_file(project=project, by=lead, file=jsonl(comparisons()), filename="a.jsonl")
    assert not Prompt.objects.exists(), "nothing stays of a refused import"


@pytest.mark.skipif(not HH.exists(), reason=f"{HH} is not on this machine")
def test_the_hh_comparisons_come_in_whole(project: Project, lead: User) -> None:
    with HH.open("rb") as file:
        report, campaign = import_file(project=project, by=lead, file=file, filename=HH.name)
    assert campaign is not None
    assert report.rows == 1800
    assert report.error_count == 0
    assert report.left_out == {"an answer is empty": 4}
    assert report.added == 1796
    ledger = take_snapshot(project, campaign).manifest["ledger"]
    assert ledger == {"judgements": 1796, "exported": 1796, "pairs": 1796, "excluded": {}}
    with HH.open("rb") as file:
        report, again = import_file(project=project, by=lead, file=file, filename=HH.name)
    assert (again, report.added, report.known) == (campaign, 0, 1796)


# The page and REST


def test_the_page_shows_then_adds(
    project: Project, lead: User, login: Callable[[User], Client]
) -> None:
    address = reverse("import", args=[project.slug])
    client = login(lead)
    assert client.get(address).status_code == 200
    upload = SimpleUploadedFile("ours.jsonl", jsonl(comparisons()).getvalue())
    seen = client.post(address, {"file": upload})
    assert seen.status_code == 200
    page = seen.content.decode()
    assert "Add 12 rows" in page
    assert "Because 0." in page
    assert not Judgement.objects.exists()
    kept = seen.context["kept"]
    form = {"kept": kept, "filename": "ours.jsonl", "name": "Ours", "confirm": "1"}
    added = client.post(address, form, follow=True)
    assert "12 rows added" in added.content.decode()
    assert Campaign.objects.get().name == "Ours"
    assert "kept for a day" in client.post(address, form).content.decode()


def test_the_page_names_lines_and_columns(
    project: Project, lead: User, login: Callable[[User], Client]
) -> None:
    address = reverse("import", args=[project.slug])
    client = login(lead)
    values = [{"q": f"{n}?", "good": "A", "bad": "B"} for n in range(10)]
    data = jsonl(values).getvalue() + b"{broken\n"
    seen = client.post(address, {"file": SimpleUploadedFile("a.jsonl", data)})
    assert seen.status_code == 400
    assert "No column is a prompt" in seen.content.decode()
    form = {
        "kept": seen.context["kept"],
        "filename": "a.jsonl",
        "part-prompt": "q",
        "part-chosen": "good",
        "part-rejected": "bad",
    }
    page = client.post(address, form).content.decode()
    assert "Line 11: This is not JSON" in page
    assert client.post(address, form | {"confirm": "1"}).status_code == 400
    assert not Judgement.objects.exists()
    assert client.post(address, form | {"confirm": "1", "skip_errors": "on"}).status_code == 302
    assert Judgement.objects.count() == 10


def test_the_page_is_the_leads_and_its_uploads_stay_in_the_project(
    project: Project,
    lead: User,
    annotator: User,
    stranger: User,
    login: Callable[[User], Client],
) -> None:
    address = reverse("import", args=[project.slug])
    assert [login(one).get(address).status_code for one in (stranger, annotator)] == [404, 403]
    upload = SimpleUploadedFile("a.jsonl", jsonl(comparisons()).getvalue())
    kept = login(lead).post(address, {"file": upload}).context["kept"]
    other = reverse("import", args=[Project.objects.visible_to(stranger).get().slug])
    for name in (kept, "../" + kept, f"../{project.pk}/{kept}", ""):
        form = {"kept": name, "filename": "a.jsonl", "confirm": "1"}
        assert login(stranger).post(other, form).status_code == 400
    assert not Judgement.objects.exists()


def test_rest_looks_and_adds(
    project: Project, lead: User, annotator: User, api: Callable[..., APIClient]
) -> None:
    def send(client: APIClient, **more: Any) -> Any:
        upload = SimpleUploadedFile("ours.jsonl", jsonl(comparisons()).getvalue())
        return client.post("/api/imports/", {"file": upload} | more, format="multipart")

    client = api(lead)
    looked = send(client, preview="true")
    assert looked.status_code == 200
    assert looked.json()["report"]["rows"] == 12
    assert not Judgement.objects.exists()
    added = send(client, name="Ours")
    assert added.status_code == 201, added.content
    assert added.json()["campaign"] == Campaign.objects.get().pk
    again = send(client)
    assert (again.status_code, again.json()["report"]["known"]) == (200, 12)
    mapped = send(client, mapping='{"prompt": "prompt"}', preview="true")
    assert mapped.json()["report"]["layout"] == "prompts"
    assert send(client, mapping='{"prompt": 1}').status_code == 400
    assert send(api(annotator)).status_code == 403
    assert send(api(lead, Scope.READ)).status_code == 403
