from django.db import migrations, models


class Migration(migrations.Migration):
    dependencies = [("training", "0012_measured_checkpointing")]

    operations = [
        migrations.AlterField(
            model_name="run",
            name="attempts",
            field=models.PositiveSmallIntegerField(db_default=0, default=0),
        ),
    ]
