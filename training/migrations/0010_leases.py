from django.db import migrations, models

LEASE = {
    "attempts": models.PositiveSmallIntegerField(db_default=0, default=0),
    "heartbeat_at": models.DateTimeField(blank=True, null=True),
    "lease": models.UUIDField(blank=True, null=True),
}


class Migration(migrations.Migration):
    dependencies = [("training", "0009_rounds")]

    operations = [
        migrations.AddField(model_name=model, name=name, field=field)
        for model in ("evaluation", "snapshot")
        for name, field in LEASE.items()
    ]
