from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("inference", "0003_gate")]

    operations = [
        migrations.AlterField(
            model_name="completion",
            name="source",
            field=models.CharField(
                choices=[
                    ("gateway", "a program through /v1"),
                    ("chat", "the chat page"),
                    ("candidate", "a campaign's candidate"),
                    ("evaluation", "an evaluation"),
                    ("draft", "a draft"),
                ],
                max_length=12,
            ),
        ),
    ]
