"""The page that shows a snapshot's row as the tokens that a base reads."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, render
from django.views.decorators.http import require_GET

from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import Role
from accounts.pages import refused
from inference.models import BaseModel
from training import rendered
from training.forms import method_choices
from training.models import Snapshot
from training.options import METHODS_FOR, Kind

TEMPLATE = "training/rendered.html"


class PreviewForm(forms.Form):
    """Which row, and read by what at which limits."""

    base = forms.ModelChoiceField(queryset=BaseModel.objects.none(), empty_label=None)
    method = forms.ChoiceField()
    part = forms.ChoiceField(
        choices=[("train", "to learn from"), ("heldout", "held out")], label="Rows"
    )
    row = forms.IntegerField(min_value=1, label="Row")
    max_length = forms.IntegerField(
        min_value=1, required=False, help_text="Tokens; empty is the method's own."
    )
    max_prompt_length = forms.IntegerField(
        min_value=1, required=False, help_text="Tokens; empty is the method's own."
    )

    def __init__(self, data: Any, *, snapshot: Snapshot) -> None:
        bases = rendered.bases_of(snapshot)
        methods = METHODS_FOR[Kind(snapshot.kind)]
        first = {"method": methods[0], "part": "train", "row": "1"}
        if bases:
            first["base"] = str(bases[0].pk)
        super().__init__(first | {name: value for name, value in data.items() if value})
        base, method = self.fields["base"], self.fields["method"]
        assert isinstance(base, forms.ModelChoiceField)
        assert isinstance(method, forms.ChoiceField)
        base.queryset = BaseModel.objects.filter(pk__in=[one.pk for one in bases])
        method.choices = method_choices(methods)


@login_required
@require_GET
def rendered_row(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Show one row as a base reads it, and what becomes of all of them."""
    membership = get_membership(request, slug, Role.LEAD)
    snapshot = get_object_or_404(
        Snapshot.objects.learnable(),
        project=membership.project,
        pk=pk,
        state=Snapshot.State.READY,
    )
    form = PreviewForm(request.GET, snapshot=snapshot)
    context: dict[str, Any] = {"snapshot": snapshot, "form": form}
    if not form.is_valid():
        return refused(request, TEMPLATE, context, "Some fields need another look; see below.")
    values = dict(form.cleaned_data)
    try:
        context["preview"] = rendered.preview_row(
            snapshot=snapshot, number=values.pop("row"), **values
        )
    except ProductError as error:
        return refused(request, TEMPLATE, context, error)
    return render(request, TEMPLATE, context)
