"""Let the database itself refuse to rewrite a version or the alias ledger."""

from __future__ import annotations

from django.db import migrations

FREEZE = """
CREATE FUNCTION inference_version_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF ROW(NEW.project_id, NEW.number, NEW.base_id, NEW.parent_id, NEW.method, NEW.digest, NEW.path,
         NEW.snapshot_digest, NEW.metrics, NEW.proof, NEW.created_at)
     IS DISTINCT FROM
     ROW(OLD.project_id, OLD.number, OLD.base_id, OLD.parent_id, OLD.method, OLD.digest, OLD.path,
         OLD.snapshot_digest, OLD.metrics, OLD.proof, OLD.created_at) THEN
    RAISE EXCEPTION 'a version is never changed' USING ERRCODE = 'integrity_constraint_violation';
  END IF;
  RETURN NEW;
END $$;
CREATE TRIGGER version_frozen BEFORE UPDATE ON inference_version
  FOR EACH ROW EXECUTE FUNCTION inference_version_frozen();

CREATE FUNCTION inference_aliasmove_frozen() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  IF TG_OP = 'UPDATE' THEN
    NEW.by_id := OLD.by_id;  -- the account of the mover may go, nothing else may change
    IF NEW IS NOT DISTINCT FROM OLD THEN
      NEW.by_id := NULL;
      RETURN NEW;
    END IF;
  END IF;
  RAISE EXCEPTION 'the alias ledger is only appended to'
    USING ERRCODE = 'integrity_constraint_violation';
END $$;
CREATE TRIGGER aliasmove_frozen BEFORE UPDATE OR DELETE ON inference_aliasmove
  FOR EACH ROW EXECUTE FUNCTION inference_aliasmove_frozen();
"""

THAW = """
DROP TRIGGER aliasmove_frozen ON inference_aliasmove;
DROP FUNCTION inference_aliasmove_frozen();
DROP TRIGGER version_frozen ON inference_version;
DROP FUNCTION inference_version_frozen();
"""


class Migration(migrations.Migration):
    dependencies = [("inference", "0001_initial")]
    operations = [migrations.RunSQL(FREEZE, THAW)]
