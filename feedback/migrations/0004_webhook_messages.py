"""Tell webhooks of judgements and campaigns in the transaction that changes them.

Triggers, so that no path of the code forgets one and judging costs no statement more.
"""

from __future__ import annotations

from django.db import migrations

TELL = """
CREATE FUNCTION feedback_tell_judgements() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO accounts_webhookmessage (key, webhook_id, event, data)
  SELECT gen_random_uuid(), webhook.id, TG_ARGV[0], jsonb_build_object(
           'judgement', told.client_id, 'campaign', told.campaign_id, 'item', told.item_id,
           'annotator', told.annotator_id, 'created_at', told.created_at)
    FROM told
    JOIN feedback_campaign AS campaign ON campaign.id = told.campaign_id
    JOIN accounts_webhook AS webhook ON webhook.project_id = campaign.project_id
   WHERE webhook.active AND TG_ARGV[0] = ANY(webhook.events);
  RETURN NULL;
END $$;

CREATE FUNCTION feedback_tell_retractions() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO accounts_webhookmessage (key, webhook_id, event, data)
  SELECT gen_random_uuid(), webhook.id, TG_ARGV[0], jsonb_build_object(
           'judgement', told.client_id, 'campaign', told.campaign_id, 'item', told.item_id,
           'annotator', told.annotator_id, 'why', told.retracted_why)
    FROM told
    JOIN untold ON untold.id = told.id AND untold.retracted_at IS NULL
    JOIN feedback_campaign AS campaign ON campaign.id = told.campaign_id
    JOIN accounts_webhook AS webhook ON webhook.project_id = campaign.project_id
   WHERE told.retracted_at IS NOT NULL AND webhook.active AND TG_ARGV[0] = ANY(webhook.events);
  RETURN NULL;
END $$;

CREATE FUNCTION feedback_tell_campaign() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  told text := CASE NEW.state WHEN 'open' THEN 'campaign.opened' ELSE 'campaign.' || NEW.state END;
BEGIN
  INSERT INTO accounts_webhookmessage (key, webhook_id, event, data)
  SELECT gen_random_uuid(), webhook.id, told, jsonb_build_object(
           'campaign', NEW.id, 'name', NEW.name, 'reason', NEW.reason)
    FROM accounts_webhook AS webhook
   WHERE webhook.project_id = NEW.project_id AND webhook.active AND told = ANY(webhook.events);
  RETURN NULL;
END $$;

CREATE TRIGGER judgements_told AFTER INSERT ON feedback_judgement
  REFERENCING NEW TABLE AS told
  FOR EACH STATEMENT EXECUTE FUNCTION feedback_tell_judgements('judgement.created');
CREATE TRIGGER retractions_told AFTER UPDATE ON feedback_judgement
  REFERENCING OLD TABLE AS untold NEW TABLE AS told
  FOR EACH STATEMENT EXECUTE FUNCTION feedback_tell_retractions('judgement.retracted');
CREATE TRIGGER campaign_told AFTER UPDATE OF state ON feedback_campaign
  FOR EACH ROW WHEN (OLD.state IS DISTINCT FROM NEW.state AND NEW.state <> 'generating')
  EXECUTE FUNCTION feedback_tell_campaign();
"""

HUSH = """
DROP TRIGGER campaign_told ON feedback_campaign;
DROP TRIGGER retractions_told ON feedback_judgement;
DROP TRIGGER judgements_told ON feedback_judgement;
DROP FUNCTION feedback_tell_campaign();
DROP FUNCTION feedback_tell_retractions();
DROP FUNCTION feedback_tell_judgements();
"""


class Migration(migrations.Migration):
    dependencies = [
        ("feedback", "0003_extras"),
        ("accounts", "0002_webhooks"),
    ]
    operations = [migrations.RunSQL(TELL, HUSH)]
