"""Let the database itself refuse to rewrite what an annotator said."""

from __future__ import annotations

from django.db import migrations

FREEZE = """
CREATE FUNCTION feedback_judgement_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF ROW(NEW.client_id, NEW.slot_id, NEW.item_id, NEW.campaign_id, NEW.annotator_id, NEW.ranking,
         NEW.thumb, NEW.strength, NEW.both_bad, NEW.shown, NEW.created_at)
     IS DISTINCT FROM
     ROW(OLD.client_id, OLD.slot_id, OLD.item_id, OLD.campaign_id, OLD.annotator_id, OLD.ranking,
         OLD.thumb, OLD.strength, OLD.both_bad, OLD.shown, OLD.created_at) THEN
    RAISE EXCEPTION 'a judgement is never edited; retract it instead'
      USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER judgement_frozen BEFORE UPDATE ON feedback_judgement
  FOR EACH ROW EXECUTE FUNCTION feedback_judgement_frozen();
"""

THAW = """
DROP TRIGGER judgement_frozen ON feedback_judgement;
DROP FUNCTION feedback_judgement_frozen();
"""


class Migration(migrations.Migration):
    dependencies = [("feedback", "0001_initial")]
    operations = [migrations.RunSQL(FREEZE, THAW)]
