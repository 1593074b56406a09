"""The forms of training pages; a method's arguments come from the engine's own schema."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from django import forms
from django.conf import settings
from django.http import QueryDict
from django.utils.text import capfirst

from accounts.models import Project
from accounts.parsing import Unreadable, read_json
from accounts.templatetags.laurel import method_name
from feedback.models import Campaign
from inference.models import Version
from training.engine.arguments import METHODS as ENGINE_METHODS
from training.engine.arguments import argument_schema
from training.models import Evaluation, Snapshot
from training.options import Imitate, Kind, Margins, Pairs, Pii, Votes
from training.scales import names_of

METHODS = tuple(ENGINE_METHODS)
OPTION_FIELDS = (
    "feedback", "pairs", "votes", "min_agreement", "attributes", "gap", "margins", "imitate",
    "max_characters", "languages", "pii", "near", "heldout_annotators",
)  # fmt: skip


def method_choices(methods: Iterable[str]) -> list[tuple[str, str]]:
    """Return training methods as a form offers them."""
    return [(method, capfirst(method_name(method))) for method in methods]


def option_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return stored options as the fields of ``OptionsForm`` show them."""
    weights = options.get("attributes", {})
    shown = {name: options[name] for name in OPTION_FIELDS if name in options}
    return shown | {
        "attributes": ", ".join(f"{name}={weights[name]:g}" for name in weights),
        "languages": ", ".join(options.get("languages", ())),
    }


def _seed(help_text: str = "") -> forms.IntegerField:
    return forms.IntegerField(min_value=0, max_value=2**31 - 1, initial=0, help_text=help_text)


class VersionField(forms.ModelChoiceField):  # type: ignore[type-arg]  # not so at run time
    """A version, said with its method and base."""

    def label_from_instance(self, obj: Any) -> str:
        if obj.is_base:
            return f"base: {obj.base.name}"
        return f"{obj.name}: {obj.method.upper()} on {obj.base.name}"


class SnapshotField(forms.ModelChoiceField):  # type: ignore[type-arg]  # not so at run time
    """A snapshot, said with what there is to learn from."""

    def label_from_instance(self, obj: Any) -> str:
        rows = obj.manifest.get("rows", {}).get("train", 0)
        what = {"preference": "pairs", "unpaired": "good or bad answers"}.get(obj.kind, "answers")
        return f"snapshot {obj.pk}: {rows:,} {what} to learn from ({obj.digest[:12]})"


class HeldoutField(forms.ModelChoiceField):  # type: ignore[type-arg]  # not so at run time
    """A snapshot, said with what it holds out."""

    def label_from_instance(self, obj: Any) -> str:
        prompts = obj.manifest.get("prompts", {}).get("heldout", 0)
        return f"snapshot {obj.pk}: {prompts:,} held-out prompts ({obj.digest[:12]})"


class OptionsForm(forms.Form):
    """How a snapshot's rows are made; the options are those of ``training.options``."""

    feedback = forms.BooleanField(
        label="Feedback on answers in use",
        required=False,
        help_text="Thumbs and corrections given in the chat and through the API, of all time.",
    )
    kind = forms.ChoiceField(
        label="Rows",
        choices=Kind.choices,
        initial=Kind.PREFERENCE,
        required=False,
        help_text="What can be learnt from them, and how. From ratings nothing: they are for other "
        "tools.",
    )
    pairs = forms.ChoiceField(
        label="Pairs of a ranking",
        choices=Pairs.choices,
        required=False,
        help_text="All pairs are the whole ranking; the rank tree learns them in one pass.",
    )
    votes = forms.ChoiceField(
        label="Several annotators",
        choices=Votes.choices,
        required=False,
        help_text="What becomes of several judgements on the same answers. Where votes are "
        "counted, what a lead decided of an item stands in place of the count.",
    )
    min_agreement = forms.FloatField(
        label="Least agreement",
        min_value=0,
        max_value=1,
        initial=0,
        required=False,
        help_text="Share of the votes that the winner needs. 0 takes everything.",
        widget=forms.NumberInput(attrs={"step": "0.05"}),
    )
    attributes = forms.CharField(
        label="Attributes",
        required=False,
        help_text="Rated scales that order the answers, with weights: helpfulness=1, "
        "verbosity=-0.5. Empty goes by rankings. Only for preferences.",
    )
    gap = forms.FloatField(
        label="Least gap",
        min_value=0,
        initial=1,
        required=False,
        help_text="How far the weighted sums of two answers must differ.",
        widget=forms.NumberInput(attrs={"step": "0.1"}),
    )
    margins = forms.ChoiceField(
        label="Margin of a pair",
        choices=Margins.choices,
        required=False,
        help_text="How much better the chosen answer is, for reward models that learn it. A lead "
        "needs attributes.",
    )
    imitate = forms.MultipleChoiceField(
        label="Answers to imitate",
        choices=Imitate.choices,
        initial=[Imitate.CORRECTIONS, Imitate.THUMBS],
        required=False,
        help_text="Only for SFT rows.",
        widget=forms.CheckboxSelectMultiple,
    )
    max_characters = forms.IntegerField(
        label="Most characters",
        min_value=0,
        initial=0,
        required=False,
        help_text="Leaves out rows whose prompt and longer answer have more together. 0 takes all.",
    )
    languages = forms.CharField(
        label="Languages",
        required=False,
        help_text="Codes such as en, de: rows with a text in another language are left out. A text "
        "under 20 characters, or of no one language, counts as undetermined and stays. Empty "
        "takes all.",
    )
    pii = forms.ChoiceField(
        label="Personal data",
        choices=Pii.choices,
        required=False,
        help_text="Email and IP addresses, telephone, card, bank and US social security numbers, "
        "wallets; not names. The originals stay as they are.",
    )
    heldout_annotators = forms.FloatField(
        label="Annotators held out",
        min_value=0,
        max_value=0.9,
        initial=0,
        required=False,
        help_text="Share of the annotators whose judgements are kept from training, besides the "
        "held-out prompts: they show whether a model pleases people whom it did not learn from. "
        "What others said of the same prompts is left out, so more goes than the share. 0 keeps "
        "none.",
        widget=forms.NumberInput(attrs={"step": "0.05"}),
    )
    near = forms.BooleanField(
        label="Keep near-duplicate prompts on one side of the split",
        required=False,
        help_text="Found by MinHash over their words; none is learnt from while its twin is held "
        "out.",
    )

    def clean_kind(self) -> str:
        return self.cleaned_data["kind"] or Kind.PREFERENCE

    def clean_attributes(self) -> dict[str, float]:
        """Read ``name=weight, name=weight``; a name alone weighs 1."""
        found = {}
        for part in filter(None, map(str.strip, self.cleaned_data["attributes"].split(","))):
            name, _, weight = part.partition("=")
            try:
                found[name.strip()] = float(weight or 1)
            except ValueError:
                raise forms.ValidationError(
                    f"“{part}” is no name with a weight. Write it as helpfulness=1."
                ) from None
        return found

    def clean_languages(self) -> list[str]:
        """Read codes with commas or blanks between them."""
        return sorted(set(self.cleaned_data["languages"].lower().replace(",", " ").split()))

    @property
    def how(self) -> list[forms.BoundField]:
        """Return the fields of which the defaults will mostly do."""
        return [self[name] for name in OPTION_FIELDS if name != "feedback"]

    def options(self) -> dict[str, Any]:
        """Return the options that were filled in."""
        given = {name: self.cleaned_data.get(name) for name in OPTION_FIELDS}
        return {name: value for name, value in given.items() if value not in (None, "", [], {})}

    def name_scales(self, campaigns: Iterable[Campaign]) -> None:
        """Say which scales these campaigns have."""
        if names := names_of(campaigns):
            self.fields["attributes"].help_text += f" There are {', '.join(names)}."


class SnapshotForm(OptionsForm):
    """What a snapshot is taken of, and how."""

    campaigns = forms.MultipleChoiceField(widget=forms.CheckboxSelectMultiple, required=False)
    heldout_fraction = forms.FloatField(
        label="Held out",
        min_value=0,
        max_value=0.9,
        initial=0.2,
        help_text="Share of the prompts kept from training, to measure on. 0 to 0.9.",
        widget=forms.NumberInput(attrs={"step": "0.01"}),
    )

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.by_key = {str(row.pk): row for row in Campaign.objects.filter(project=project)}
        field = self.fields["campaigns"]
        assert isinstance(field, forms.MultipleChoiceField)
        field.choices = [(key, row.name) for key, row in self.by_key.items()]
        self.name_scales(self.by_key.values())

    def clean_campaigns(self) -> list[Campaign]:
        return [self.by_key[key] for key in self.cleaned_data["campaigns"]]

    def clean(self) -> dict[str, Any]:
        cleaned = super().clean() or {}
        if "campaigns" in cleaned and not cleaned["campaigns"] and not cleaned.get("feedback"):
            self.add_error("campaigns", "Choose at least one campaign.")
        return cleaned


class RunForm(forms.Form):
    """From what to train, and by what method."""

    snapshot = SnapshotField(queryset=Snapshot.objects.none(), empty_label=None)
    start_version = VersionField(
        label="Start from",
        queryset=Version.objects.none(),
        empty_label=None,
        help_text="The plain base, or an adapter to train further.",
    )
    # The page chooses the method by a tab, as each has arguments of its own.
    method = forms.ChoiceField(
        choices=method_choices(METHODS),
        widget=forms.HiddenInput,
    )
    seed = _seed("The same snapshot, arguments and seed give the same adapter.")

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        snapshots, versions = self.fields["snapshot"], self.fields["start_version"]
        assert isinstance(snapshots, forms.ModelChoiceField)
        assert isinstance(versions, forms.ModelChoiceField)
        snapshots.queryset = Snapshot.objects.filter(project=project).usable().learnable()
        versions.queryset = (
            Version.objects.filter(project=project).select_related("base").order_by("number")
        )


class ArgumentsForm(forms.Form):
    """A method's arguments, built from ``training.engine.arguments``; JSON wins over fields."""

    as_json = forms.CharField(
        label="As JSON",
        required=False,
        help_text="What is named here wins over the fields above.",
        widget=forms.Textarea(attrs={"rows": 8, "spellcheck": "false", "class": "mono"}),
    )

    def __init__(self, *args: Any, method: str, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs | {"prefix": "a"})
        self.schema = argument_schema(method)
        for row in self.schema:
            self.fields[row["name"]] = _argument_field(row)

    @property
    def basic(self) -> list[forms.BoundField]:
        """Return the fields of the short form."""
        return [self[row["name"]] for row in self.schema if row["basic"]]

    @property
    def further(self) -> list[forms.BoundField]:
        """Return the rest."""
        return [self[row["name"]] for row in self.schema if not row["basic"]]

    @property
    def further_open(self) -> bool:
        """Say whether one of the rest has an error or differs from its default."""
        return any(field.errors for field in self.further)

    def clean_as_json(self) -> dict[str, Any]:
        text = self.cleaned_data["as_json"].strip()
        if not text:
            return {}
        return _object(text, '{"beta": 0.1}')

    def arguments(self) -> dict[str, Any]:
        """Return what was given, as ``start_run`` takes it."""
        given: dict[str, Any] = {}
        for row in self.schema:
            value = self.cleaned_data.get(row["name"])
            if row["type"] == "list":
                value = [name.strip() for name in (value or "").split(",") if name.strip()]
            if value is not None and value != "":
                given[row["name"]] = value
        given.update(self.cleaned_data["as_json"])
        return given


def take_proposal(data: QueryDict) -> None:
    """Write the changes that preflight proposes into the sent form; what is not JSON changes none.

    A change also leaves the JSON box, where its old value would win.
    """
    try:
        changes = read_json(str(data["take"]).encode())
        written = read_json(str(data.get("a-as_json") or "{}").encode())
    except ValueError:
        return
    if not isinstance(changes, dict) or not isinstance(written, dict):
        return
    for name, value in changes.items():
        data[f"a-{name}"] = "on" if value is True else "" if value is False else str(value)
        written.pop(name, None)
    data["a-as_json"] = json.dumps(written) if written else ""


def _argument_field(row: dict[str, Any]) -> forms.Field:
    """Return a form field for one row of the schema."""
    unit = f" ({row['unit']})" if row["unit"] else ""
    common: dict[str, Any] = {
        "label": row["name"].replace("_", " ") + unit,
        "help_text": _help(row),
        "required": False,
        "initial": row["default"],
    }
    if row["type"] == "choice":
        return forms.ChoiceField(choices=[(choice, choice) for choice in row["choices"]], **common)
    if row["type"] == "boolean":
        return forms.BooleanField(**common)
    if row["type"] == "list":
        return forms.CharField(**common | {"initial": ", ".join(row["default"])})
    # Limits are checked by the engine's own code, whose sentence names the argument.
    number = forms.IntegerField if row["type"] == "integer" else forms.FloatField
    return number(widget=forms.NumberInput(attrs={"step": "any"}), **common)


def _help(row: dict[str, Any]) -> str:
    source = f" Source: {row['source']}." if row["source"] else ""
    return f"{row['meaning']}{source}"


class ObjectField(forms.CharField):
    """A JSON object; left empty it is an empty one."""

    widget = forms.Textarea

    def clean(self, value: Any) -> dict[str, Any]:
        text = super().clean(value)
        return _object(text, '{"beta": [0.1, 0.3]}') if text else {}


def _object(text: str, like: str) -> dict[str, Any]:
    """Return the JSON object that somebody typed, fit to be kept."""
    try:
        value = read_json(text.encode())
    except Unreadable as error:
        raise forms.ValidationError(str(error)) from error
    if not isinstance(value, dict):
        raise forms.ValidationError(f"This must be an object, such as {like}.")
    return value


class RoundForm(forms.Form):
    """Which methods and settings a round trains on which snapshot."""

    name = forms.CharField(max_length=120, required=False)
    snapshot = SnapshotField(queryset=Snapshot.objects.none(), empty_label=None)
    start_version = VersionField(
        label="Start from", queryset=Version.objects.none(), empty_label=None
    )
    methods = forms.MultipleChoiceField(
        required=False,
        initial=["reward", "dpo", "orpo"],
        choices=method_choices(METHODS),
        widget=forms.CheckboxSelectMultiple,
    )
    suite = forms.BooleanField(
        label="The suite instead of these",
        required=False,
        help_text="SFT by every way of tuning (LoRA, DoRA, 4-bit, 8-bit, full), DPO and ORPO: "
        "time, memory, size and quality side by side.",
    )
    grid = ObjectField(
        label="Grid",
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "spellcheck": "false", "class": "mono"}),
        help_text='JSON of values to try in every combination: {"beta": [0.1, 0.3]}.',
    )
    arguments = ObjectField(
        label="Arguments of all runs",
        required=False,
        widget=forms.Textarea(attrs={"rows": 2, "spellcheck": "false", "class": "mono"}),
        help_text='JSON of arguments that all share: {"epochs": 1}. The rest are defaults.',
    )
    first_steps = forms.IntegerField(
        label="Halve, starting with so many steps",
        min_value=0,
        initial=0,
        required=False,
        help_text="0 trains all to the end. Otherwise the better half goes on, each time with "
        "twice the steps, until one is left.",
    )
    seed = _seed()

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        snapshots, versions = self.fields["snapshot"], self.fields["start_version"]
        assert isinstance(snapshots, forms.ModelChoiceField)
        assert isinstance(versions, forms.ModelChoiceField)
        snapshots.queryset = Snapshot.objects.filter(project=project).usable().learnable()
        versions.queryset = (
            Version.objects.filter(project=project).select_related("base").order_by("number")
        )

    def clean_grid(self) -> dict[str, Any]:
        grid: dict[str, Any] = self.cleaned_data["grid"]
        if not all(isinstance(values, list) and values for values in grid.values()):
            raise forms.ValidationError('Give each argument a list of values: {"beta": [0.1]}.')
        return grid


class EvaluationForm(forms.Form):
    """Which version meets which, on whose held-out prompts, by what rule."""

    challenger = VersionField(queryset=Version.objects.none(), empty_label=None)
    champion = VersionField(
        queryset=Version.objects.none(),
        empty_label=None,
        help_text="The version to beat: what serves in production, unless you choose otherwise.",
    )
    snapshot = HeldoutField(
        label="Held-out prompts of",
        queryset=Snapshot.objects.none(),
        empty_label=None,
        help_text="Prompts that this snapshot kept from training.",
    )
    judge = forms.ChoiceField(
        label="Judged by",
        choices=Evaluation.Judge.choices,
        initial=Evaluation.Judge.RULE,
        required=False,
        help_text="People judge both answers side by side and never learn who wrote them.",
    )
    rule = forms.ChoiceField(
        required=False, help_text="Where a rule judges: which answer counts as better."
    )
    reward_version = VersionField(
        label="Reward model",
        queryset=Version.objects.none(),
        required=False,
        help_text="Where a reward model judges.",
    )
    judgements_per_item = forms.IntegerField(
        label="Judgements of each pair",
        min_value=1,
        max_value=50,
        initial=3,
        required=False,
        help_text="Where people judge.",
    )
    samples = forms.IntegerField(
        label="Answers to each prompt",
        min_value=1,
        max_value=64,
        initial=4,
        help_text="More of them narrow the interval and take longer.",
    )
    seed = _seed()

    def __init__(self, *args: Any, project: Project, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        versions = Version.objects.filter(project=project).select_related("base")
        for name in ("challenger", "champion"):
            field = self.fields[name]
            assert isinstance(field, forms.ModelChoiceField)
            field.queryset = versions.exclude(method="reward").order_by("-number")
        reward = self.fields["reward_version"]
        assert isinstance(reward, forms.ModelChoiceField)
        reward.queryset = versions.filter(method="reward").order_by("-number")
        snapshots, rule = self.fields["snapshot"], self.fields["rule"]
        assert isinstance(snapshots, forms.ModelChoiceField)
        assert isinstance(rule, forms.ChoiceField)
        snapshots.queryset = Snapshot.objects.filter(project=project).usable()
        rule.choices = [(name, name) for name in settings.EVALUATION_RULES]
        production = versions.in_production().first()
        if production is not None:
            self.initial.setdefault("champion", production.pk)

    def clean_judge(self) -> str:
        return self.cleaned_data["judge"] or Evaluation.Judge.RULE

    def clean_judgements_per_item(self) -> int:
        return self.cleaned_data["judgements_per_item"] or 3
