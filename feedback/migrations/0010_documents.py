from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("feedback", "0009_priorities")]

    operations = [
        migrations.AddField(
            model_name="prompt",
            name="documents",
            field=models.JSONField(
                blank=True,
                db_default=models.Value([], models.JSONField()),
                default=list,
            ),
        ),
        migrations.AddConstraint(
            model_name="prompt",
            constraint=models.CheckConstraint(
                condition=models.Q(("erased_at", None), ("documents", []), _connector="OR"),
                name="an_erased_prompt_has_no_documents",
            ),
        ),
    ]
