from __future__ import annotations

from django.contrib.auth import views as auth_views
from django.urls import path

from accounts import api, api_members, api_webhooks, views

urlpatterns = [
    path("", views.home, name="home"),
    path("login/", views.LoginView.as_view(), name="login"),
    path("logout/", auth_views.LogoutView.as_view(), name="logout"),
    path("api/me", api.MeView.as_view()),
    path("api/members/", api_members.MembersView.as_view()),
    path("api/members/<int:user>/", api_members.MemberView.as_view()),
    path("api/webhooks/", api_webhooks.WebhooksView.as_view()),
    path("api/webhooks/<int:pk>/", api_webhooks.WebhookView.as_view()),
    path("api/webhooks/<int:pk>/messages/", api_webhooks.MessagesView.as_view()),
    path(
        "api/webhooks/<int:pk>/messages/<uuid:key>/send-again",
        api_webhooks.SendAgainView.as_view(),
    ),
]
