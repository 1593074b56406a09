"""The annotator's pages, below /p/<slug>/."""

from __future__ import annotations

from django.urls import path

from feedback import views_annotate as views
from feedback import views_own_progress

urlpatterns = [
    path("queue/", views.queue, name="queue"),
    path("queue/progress", views_own_progress.my_progress, name="my_progress"),
    path("campaigns/<int:pk>/task/", views.task, name="task"),
    path("campaigns/<int:pk>/task/skip/", views.task_skip, name="task_skip"),
    path("campaigns/<int:pk>/task/undo/", views.task_undo, name="task_undo"),
    path("campaigns/<int:pk>/task/confirm/", views.task_confirm, name="task_confirm"),
    path("campaigns/<int:pk>/task/renew/", views.task_renew, name="task_renew"),
]
