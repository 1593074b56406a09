from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0004_gate")]

    operations = [
        migrations.AddField(
            model_name="run",
            name="pause_requested",
            field=models.BooleanField(default=False),
        ),
        migrations.AlterField(
            model_name="run",
            name="state",
            field=models.CharField(
                choices=[
                    ("queued", "queued"),
                    ("running", "running"),
                    ("interrupted", "interrupted"),
                    ("paused", "paused"),
                    ("succeeded", "succeeded"),
                    ("failed", "failed"),
                    ("cancelled", "cancelled"),
                ],
                default="queued",
                max_length=12,
            ),
        ),
    ]
