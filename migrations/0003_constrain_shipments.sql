-- Rebuilds shipments with a CHECK for every column, so that no writer can store what the figures would count wrongly.
-- Values and ids stay as they are: a row that the CHECKs would not let in refuses the step.
-- refuse: SELECT printf('reference %s is empty, no text or has blanks around it', quote(reference))
--   FROM shipments WHERE NOT (typeof(reference) = 'text' AND reference = trim(reference) AND reference <> '');
-- refuse: SELECT printf('reference %s: carrier %s is empty or no text', quote(reference), quote(carrier))
--   FROM shipments WHERE NOT (typeof(carrier) IN ('text', 'null') AND carrier <> '');
-- refuse: SELECT printf('reference %s: mode %s is no mode', quote(reference), quote(mode))
--   FROM shipments WHERE NOT (mode IN ('air', 'road', 'rail', 'ocean', 'parcel', 'multimodal'));
-- refuse: SELECT printf('reference %s: service %s is no text', quote(reference), quote(service))
--   FROM shipments WHERE NOT (typeof(service) IN ('text', 'null'));
-- refuse: SELECT printf('reference %s: origin %s is no text', quote(reference), quote(origin))
--   FROM shipments WHERE NOT (typeof(origin) IN ('text', 'null'));
-- refuse: SELECT printf('reference %s: destination %s is no text', quote(reference), quote(destination))
--   FROM shipments WHERE NOT (typeof(destination) IN ('text', 'null'));
-- refuse: SELECT printf('reference %s: status %s is no status', quote(reference), quote(status))
--   FROM shipments WHERE NOT (status IN ('pending', 'pre_transit', 'in_transit', 'out_for_delivery', 'available_for_pickup',
--     'attempted', 'exception', 'delivered', 'returned', 'cancelled'));
-- refuse: SELECT printf('reference %s: created_at %s is no date or instant', quote(reference), quote(created_at))
--   FROM shipments WHERE NOT (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 days')
--     OR created_at IS date(created_at, '+0 days'));
-- refuse: SELECT printf('reference %s: shipped_at %s is no date or instant', quote(reference), quote(shipped_at))
--   FROM shipments WHERE NOT (shipped_at IS strftime('%Y-%m-%dT%H:%M:%SZ', shipped_at, '+0 days')
--     OR shipped_at IS date(shipped_at, '+0 days'));
-- refuse: SELECT printf('reference %s: promised_at %s is no date or instant', quote(reference), quote(promised_at))
--   FROM shipments WHERE NOT (promised_at IS strftime('%Y-%m-%dT%H:%M:%SZ', promised_at, '+0 days')
--     OR promised_at IS date(promised_at, '+0 days'));
-- refuse: SELECT printf('reference %s: delivered_at %s is no date or instant', quote(reference), quote(delivered_at))
--   FROM shipments WHERE NOT (delivered_at IS strftime('%Y-%m-%dT%H:%M:%SZ', delivered_at, '+0 days')
--     OR delivered_at IS date(delivered_at, '+0 days'));
-- refuse: SELECT printf('reference %s: weight_kg %s is not within 0 and 1e9', quote(reference), quote(weight_kg))
--   FROM shipments WHERE NOT (weight_kg BETWEEN 0 AND 1e9);
-- refuse: SELECT printf('reference %s: cost %s is not within -1e12 and 1e12', quote(reference), quote(cost))
--   FROM shipments WHERE NOT (cost BETWEEN -1e12 AND 1e12);
-- refuse: SELECT printf('reference %s: currency %s is not three capital letters', quote(reference), quote(currency))
--   FROM shipments WHERE NOT (typeof(currency) IN ('text', 'null') AND currency GLOB '[A-Z][A-Z][A-Z]');
-- refuse: SELECT printf('reference %s: exception_reason %s is empty or no text', quote(reference), quote(exception_reason))
--   FROM shipments WHERE NOT (typeof(exception_reason) IN ('text', 'null') AND exception_reason <> '');
-- refuse: SELECT printf('reference %s: updated_at %s is no instant since 1970', quote(reference), quote(updated_at))
--   FROM shipments WHERE NOT (updated_at IS strftime('%Y-%m-%dT%H:%M:%SZ', updated_at, '+0 days')
--     AND updated_at IS NOT NULL AND updated_at >= '1970');

-- Foreign keys and views that name shipments go on meaning the table of that name: sqlite.org/lang_altertable.html, section 7.
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
  weight_kg        REAL CHECK (weight_kg BETWEEN 0 AND 1e9),
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

CREATE INDEX shipments_status ON shipments (status, carrier, mode);
CREATE INDEX shipments_updated ON shipments (updated_at);

-- A new row now has its time by default.
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
