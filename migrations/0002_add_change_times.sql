-- Adds when a shipment last changed and why it was in exception, so that a source that fell silent and its reasons can be seen.
-- updated_at of the rows there becomes the latest of their own times that SQLite can read, but nothing later than now, which
-- would look like a fresh change tomorrow, and nothing before 1970, which stands where a row has no such time.

ALTER TABLE shipments ADD COLUMN exception_reason TEXT;
ALTER TABLE shipments ADD COLUMN updated_at TEXT;

UPDATE shipments SET updated_at = min(strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), max('1970-01-01T00:00:00Z',
  ifnull(strftime('%Y-%m-%dT%H:%M:%SZ', created_at), ''),
  ifnull(strftime('%Y-%m-%dT%H:%M:%SZ', shipped_at), ''),
  ifnull(strftime('%Y-%m-%dT%H:%M:%SZ', delivered_at), '')));

CREATE INDEX shipments_updated ON shipments (updated_at);

-- An added column cannot have the present time as its default.
CREATE TRIGGER shipments_stamp_new AFTER INSERT ON shipments
WHEN NEW.updated_at IS NULL
BEGIN
  UPDATE shipments SET updated_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now') WHERE id = NEW.id;
END;

CREATE TRIGGER shipments_stamp AFTER UPDATE ON shipments
WHEN NEW.updated_at IS OLD.updated_at AND (
  NEW.reference IS NOT OLD.reference OR NEW.carrier IS NOT OLD.carrier OR NEW.mode IS NOT OLD.mode
  OR NEW.service IS NOT OLD.service OR NEW.origin IS NOT OLD.origin OR NEW.destination IS NOT OLD.destination
  OR NEW.status IS NOT OLD.status OR NEW.created_at IS NOT OLD.created_at OR NEW.shipped_at IS NOT OLD.shipped_at
  OR NEW.promised_at IS NOT OLD.promised_at OR NEW.delivered_at IS NOT OLD.delivered_at
  OR NEW.weight_kg IS NOT OLD.weight_kg OR NEW.cost IS NOT OLD.cost OR NEW.currency IS NOT OLD.currency
  OR NEW.exception_reason IS NOT OLD.exception_reason)
BEGIN
  UPDATE shipments SET updated_at = strftime('%Y-%m-%dT%H:%M:%SZ', 'now') WHERE id = NEW.id;
END;
