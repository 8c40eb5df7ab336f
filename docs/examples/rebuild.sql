-- Lowers the highest weight of a shipment to a million kilograms, so that grams taken for kilograms are refused.
-- An example of a rebuild of shipments as they are in version 5. docs/migrations.md explains it; a test applies it.
-- refuse: SELECT printf('reference %s: weight_kg %s is more than 1e6', quote(reference), quote(weight_kg))
--   FROM shipments WHERE weight_kg > 1e6;

PRAGMA foreign_keys = OFF;
PRAGMA legacy_alter_table = ON;

CREATE TABLE shipments_new (
  id               INTEGER PRIMARY KEY,
  reference        TEXT NOT NULL UNIQUE
                   CHECK (typeof(reference) = 'text' AND reference = trim(reference) AND reference <> ''),
  carrier          TEXT CHECK (typeof(carrier) IN ('text', 'null') AND carrier <> ''),
  mode             TEXT CHECK (mode IN ('air', 'road', 'rail', 'ocean', 'parcel', 'multimodal')),
  service          TEXT CHECK (typeof(service) IN ('text', 'null')),
  origin           TEXT CHECK (typeof(origin) IN ('text', 'null')),
  destination      TEXT CHECK (typeof(destination) IN ('text', 'null')),
  status           TEXT NOT NULL
                   CHECK (status IN ('pending', 'pre_transit', 'in_transit', 'out_for_delivery', 'available_for_pickup',
                                     'attempted', 'exception', 'delivered', 'returned', 'cancelled')),
  created_at       TEXT CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 days')
                          OR created_at IS date(created_at, '+0 days')),
  shipped_at       TEXT CHECK (shipped_at IS strftime('%Y-%m-%dT%H:%M:%SZ', shipped_at, '+0 days')
                          OR shipped_at IS date(shipped_at, '+0 days')),
  promised_at      TEXT CHECK (promised_at IS strftime('%Y-%m-%dT%H:%M:%SZ', promised_at, '+0 days')
                          OR promised_at IS date(promised_at, '+0 days')),
  delivered_at     TEXT CHECK (delivered_at IS strftime('%Y-%m-%dT%H:%M:%SZ', delivered_at, '+0 days')
                          OR delivered_at IS date(delivered_at, '+0 days')),
  weight_kg        REAL CHECK (weight_kg BETWEEN 0 AND 1e6),
  cost             REAL CHECK (cost BETWEEN -1e12 AND 1e12),
  currency         TEXT CHECK (typeof(currency) IN ('text', 'null') AND currency GLOB '[A-Z][A-Z][A-Z]'),
  exception_reason TEXT CHECK (typeof(exception_reason) IN ('text', 'null') AND exception_reason <> ''),
  updated_at       TEXT NOT NULL
                   DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
                   CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%SZ', updated_at, '+0 days') AND updated_at >= '1970')
);

INSERT INTO shipments_new (
  id, reference, carrier, mode, service, origin, destination, status, created_at, shipped_at, promised_at, delivered_at,
  weight_kg, cost, currency, exception_reason, updated_at)
SELECT
  id, reference, carrier, mode, service, origin, destination, status, created_at, shipped_at, promised_at, delivered_at,
  weight_kg, cost, currency, exception_reason, updated_at
FROM shipments;

DROP TABLE shipments;
ALTER TABLE shipments_new RENAME TO shipments;

CREATE INDEX shipments_updated ON shipments (updated_at);
CREATE INDEX shipments_due ON shipments (promised_at, carrier, mode)
  WHERE status NOT IN ('delivered', 'returned', 'cancelled') AND promised_at IS NOT NULL;

CREATE TRIGGER shipments_insert AFTER INSERT ON shipments BEGIN
  INSERT INTO facts SELECT * FROM facts WHERE id = NEW.id;
  UPDATE deliveries SET shipments = shipments + 1 WHERE outcome = (SELECT outcome FROM outcomes WHERE id = NEW.id);
END;

CREATE TRIGGER shipments_delete AFTER DELETE ON shipments BEGIN
  INSERT INTO departed VALUES (OLD.carrier, OLD.mode, OLD.status, OLD.created_at, OLD.shipped_at, OLD.promised_at,
    OLD.delivered_at, OLD.exception_reason);
  INSERT INTO facts SELECT * FROM facts WHERE sign = -1;
  DELETE FROM departed;
END;

CREATE TRIGGER shipments_update AFTER UPDATE OF carrier, mode, status, created_at, shipped_at, promised_at, delivered_at,
  exception_reason ON shipments
BEGIN
  INSERT INTO departed VALUES (OLD.carrier, OLD.mode, OLD.status, OLD.created_at, OLD.shipped_at, OLD.promised_at,
    OLD.delivered_at, OLD.exception_reason);
  INSERT INTO facts SELECT * FROM facts WHERE sign = -1;
  UPDATE deliveries SET shipments = shipments + 1
  WHERE outcome = (SELECT outcome FROM outcomes WHERE id = NEW.id)
    AND outcome IS NOT (SELECT outcome FROM outcomes WHERE sign = -1);
  DELETE FROM departed;
  INSERT INTO facts SELECT * FROM facts WHERE id = NEW.id;
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
