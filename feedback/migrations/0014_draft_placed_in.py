import django.db.models.deletion
from django.conf import settings
from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [
        ("feedback", "0013_drafts"),
        ("inference", "0004_draft_source"),
        migrations.swappable_dependency(settings.AUTH_USER_MODEL),
    ]

    operations = [
        migrations.RemoveConstraint(
            model_name="draft",
            name="only_an_approved_draft_counts",
        ),
        migrations.AddField(
            model_name="draft",
            name="placed_in",
            field=models.ForeignKey(
                blank=True,
                null=True,
                on_delete=django.db.models.deletion.SET_NULL,
                related_name="+",
                to="feedback.campaign",
            ),
        ),
        migrations.AddConstraint(
            model_name="draft",
            constraint=models.CheckConstraint(
                condition=models.Q(
                    ("state", "approved"),
                    models.Q(
                        ("approved_as__isnull", True),
                        ("edited", False),
                        ("made_prompt__isnull", True),
                        ("placed_in__isnull", True),
                        ("response__isnull", True),
                    ),
                    _connector="OR",
                ),
                name="only_an_approved_draft_counts",
            ),
        ),
    ]
