"""Settings of a project: one's own tokens, and who is a member."""

from __future__ import annotations

from typing import Any

from django import forms
from django.contrib import messages
from django.contrib.auth.decorators import login_required
from django.http import HttpRequest, HttpResponse
from django.shortcuts import get_object_or_404, redirect, render
from django.utils import timezone
from django.views.decorators.cache import never_cache
from django.views.decorators.http import require_POST

from accounts import services
from accounts.access import get_membership
from accounts.errors import ProductError
from accounts.models import ApiToken, Membership, Role, Scope, User
from accounts.pages import asked, refused

LIFETIMES = [("7", "7 days"), ("30", "30 days"), ("90", "90 days"), ("365", "a year")]
NEVER = ""


class TokenForm(forms.Form):
    """A token to make."""

    name = forms.CharField(
        max_length=80, help_text="What will use it, so that you know it when you see it again."
    )
    scopes = forms.MultipleChoiceField(
        label="It may",
        choices=Scope.choices,
        initial=[Scope.READ],
        widget=forms.CheckboxSelectMultiple,
        help_text="Never more than your own role.",
        error_messages={"required": "Choose at least one thing that it may do."},
    )
    days = forms.ChoiceField(
        label="Lives for",
        choices=[*LIFETIMES, (NEVER, "ever, until revoked")],
        initial="90",
        required=False,
    )


def _tokens_context(membership: Membership, form: TokenForm) -> dict[str, Any]:
    """Return the page's tokens: one's own, or everybody's for an admin."""
    rows = ApiToken.objects.filter(project=membership.project).select_related("user")
    if not membership.may(Role.ADMIN):
        rows = rows.filter(user=membership.user)
    return {"tokens": rows.order_by("-created"), "form": form, "now": timezone.now()}


@login_required
@never_cache
def tokens(request: HttpRequest, slug: str) -> HttpResponse:
    """List tokens; make one, whose text is on this one answer and nowhere else."""
    membership = get_membership(request, slug)
    form = TokenForm(request.POST if request.method == "POST" else None)
    template = "settings/tokens.html"
    if request.method != "POST":
        return render(request, template, _tokens_context(membership, form))
    if not form.is_valid():
        context = _tokens_context(membership, form)
        return refused(request, template, context, "Some fields need another look; see below.")
    data = form.cleaned_data
    try:
        token, text = services.create_token(
            project=membership.project,
            user=membership.user,
            name=data["name"],
            scopes=[Scope(scope) for scope in data["scopes"]],
            days=None if data["days"] == NEVER else int(data["days"]),
        )
    except ProductError as error:
        return refused(request, template, _tokens_context(membership, form), error)
    # Not a redirect: the text would have to wait somewhere, readable, until the next request.
    context = _tokens_context(membership, TokenForm()) | {"made": token, "text": text}
    return render(request, template, context)


@login_required
@require_POST
def token_revoke(request: HttpRequest, slug: str) -> HttpResponse:
    """End a token; an admin may end anybody's."""
    membership = get_membership(request, slug)
    rows = ApiToken.objects.filter(project=membership.project).select_related("project", "user")
    if not membership.may(Role.ADMIN):
        rows = rows.filter(user=membership.user)
    token = get_object_or_404(
        rows, token_key=asked(request.POST, "key"), user__username=asked(request.POST, "owner")
    )
    services.revoke_token(token=token, by=membership.user)
    messages.success(request, f"“{token.name}” is revoked; it opens nothing any more.")
    return redirect("tokens", slug)


class MemberForm(forms.Form):
    """Somebody to add."""

    username = forms.CharField(
        label="User name",
        max_length=150,
        widget=forms.TextInput(attrs={"autocomplete": "off", "autocapitalize": "none"}),
    )
    role = forms.ChoiceField(choices=Role.choices, initial=Role.ANNOTATOR)

    def clean_username(self) -> User:
        name = self.cleaned_data["username"].strip()
        user = User.objects.filter(username=name).first()
        if user is None:
            raise forms.ValidationError(
                "Nobody here has this name. Check the spelling; accounts are made on the server "
                "with manage.py add_member or by your site's admin."
            )
        return user


def _members_context(membership: Membership, form: MemberForm) -> dict[str, Any]:
    rows = Membership.objects.filter(project=membership.project).select_related("user")
    return {
        "members": rows.order_by("user__username"),
        "form": form,
        "roles": Role.choices,
    }


@login_required
def members(request: HttpRequest, slug: str) -> HttpResponse:
    """List members; add one."""
    membership = get_membership(request, slug, Role.ADMIN)
    form = MemberForm(request.POST if request.method == "POST" else None)
    template = "settings/members.html"
    if request.method != "POST":
        return render(request, template, _members_context(membership, form))
    if not form.is_valid():
        context = _members_context(membership, form)
        return refused(request, template, context, "Some fields need another look; see below.")
    user, role = form.cleaned_data["username"], Role(form.cleaned_data["role"])
    if Membership.objects.filter(project=membership.project, user=user).exists():
        context = _members_context(membership, form)
        text = f"{user.username} is a member already. Change the role in the list."
        return refused(request, template, context, text)
    services.set_member(project=membership.project, user=user, role=role, by=membership.user)
    messages.success(request, f"{user.username} is {role.label} in {membership.project.name} now.")
    return redirect("members", slug)


def _member(membership: Membership, pk: int) -> Membership:
    rows = Membership.objects.filter(project=membership.project).select_related("user")
    return get_object_or_404(rows, pk=pk)


@login_required
@require_POST
def member_role(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """Change a member's role."""
    membership = get_membership(request, slug, Role.ADMIN)
    member = _member(membership, pk)
    context = _members_context(membership, MemberForm())
    try:
        role = Role(request.POST.get("role", ""))
    except ValueError:
        names = ", ".join(Role.values)
        return refused(request, "settings/members.html", context, f"Choose a role: {names}.")
    try:
        services.set_member(
            project=membership.project, user=member.user, role=role, by=membership.user
        )
    except ProductError as error:
        return refused(request, "settings/members.html", context, error)
    messages.success(request, f"{member.user.username} is {role.label} now.")
    # Whoever took the admin's role from themselves cannot see this page any more.
    still_admin = role == Role.ADMIN or member.user_id != membership.user_id
    return redirect("members" if still_admin else "tokens", slug)


@login_required
@require_POST
def member_remove(request: HttpRequest, slug: str, pk: int) -> HttpResponse:
    """End a membership."""
    membership = get_membership(request, slug, Role.ADMIN)
    member = _member(membership, pk)
    try:
        services.remove_member(project=membership.project, user=member.user, by=membership.user)
    except ProductError as error:
        context = _members_context(membership, MemberForm())
        return refused(request, "settings/members.html", context, error)
    messages.success(request, f"{member.user.username} is no longer a member.")
    if member.user_id == membership.user_id:
        return redirect("home")
    return redirect("members", slug)
