"""The composition root. Celery's app is made here, so that every process finds it."""

from config.celery import app as celery_app

__all__ = ["celery_app"]
