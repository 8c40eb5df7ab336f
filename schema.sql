-- The shipments database, version 5: one table of shipments, and rollups that triggers keep exact.
--
-- The one description of the schema, and what the steps in migrations/ lead to: seed.py builds new databases from it, the service
-- compares live databases with it.
-- Works from SQLite 3.26. The journal is the rollback journal, so that a reader without write permission reads from the first
-- minute.
--
-- Times are UTC text in one of two precisions, kept as given: a date 'YYYY-MM-DD' or an instant 'YYYY-MM-DDTHH:MM:SSZ'.
-- Two times of different precision are compared as dates: what was promised for a day is kept until that day ends.
-- An hour is the first 13 characters of an instant, 'YYYY-MM-DDTHH'.
--
-- A CHECK passes on NULL as well as on true, hence IS and not = where an unreadable time would make NULL; '+0 days' makes
-- SQLite work a date out, so that 30 February is not taken as it stands.

PRAGMA user_version = 5;

-- One row is one shipment: what a carrier moves from an origin to a destination against a promise.
-- Only reference and status are required; what a source does not record stays NULL and is left out of the figures that need it.
CREATE TABLE shipments (
  id               INTEGER PRIMARY KEY,
  reference        TEXT NOT NULL UNIQUE     -- the shipment's name in the system it came from; no blanks around it
                   CHECK (typeof(reference) = 'text' AND reference = trim(reference) AND reference <> ''),
  carrier          TEXT CHECK (typeof(carrier) IN ('text', 'null') AND carrier <> ''),
  mode             TEXT CHECK (mode IN ('air', 'road', 'rail', 'ocean', 'parcel', 'multimodal')),
  service          TEXT CHECK (typeof(service) IN ('text', 'null')),    -- the carrier's product, such as 'express'
  origin           TEXT CHECK (typeof(origin) IN ('text', 'null')),
  destination      TEXT CHECK (typeof(destination) IN ('text', 'null')),
  status           TEXT NOT NULL            -- the last three are closed, the others open
                   CHECK (status IN ('pending', 'pre_transit', 'in_transit', 'out_for_delivery', 'available_for_pickup',
                                     'attempted', 'exception', 'delivered', 'returned', 'cancelled')),
  created_at       TEXT                     -- the order exists
                   CHECK (created_at IS strftime('%Y-%m-%dT%H:%M:%SZ', created_at, '+0 days')
                          OR created_at IS date(created_at, '+0 days')),
  shipped_at       TEXT                     -- the carrier has it
                   CHECK (shipped_at IS strftime('%Y-%m-%dT%H:%M:%SZ', shipped_at, '+0 days')
                          OR shipped_at IS date(shipped_at, '+0 days')),
  promised_at      TEXT                     -- on time means delivered no later than this
                   CHECK (promised_at IS strftime('%Y-%m-%dT%H:%M:%SZ', promised_at, '+0 days')
                          OR promised_at IS date(promised_at, '+0 days')),
  delivered_at     TEXT                     -- the customer has it
                   CHECK (delivered_at IS strftime('%Y-%m-%dT%H:%M:%SZ', delivered_at, '+0 days')
                          OR delivered_at IS date(delivered_at, '+0 days')),
  weight_kg        REAL CHECK (weight_kg BETWEEN 0 AND 1e9),    -- the range also refuses text and infinity
  cost             REAL CHECK (cost BETWEEN -1e12 AND 1e12),    -- in currency; negative for a credit
  currency         TEXT                     -- ISO 4217
                   CHECK (typeof(currency) IN ('text', 'null') AND currency GLOB '[A-Z][A-Z][A-Z]'),
  exception_reason TEXT                     -- why it is or was in exception
                   CHECK (typeof(exception_reason) IN ('text', 'null') AND exception_reason <> ''),
  updated_at       TEXT NOT NULL            -- when this row last really changed in this database
                   DEFAULT (strftime('%Y-%m-%dT%H:%M:%SZ', 'now'))
                   CHECK (updated_at IS strftime('%Y-%m-%dT%H:%M:%SZ', updated_at, '+0 days') AND updated_at >= '1970')
);

-- The newest change, and changes dated in the future.
CREATE INDEX shipments_updated ON shipments (updated_at);

-- Open shipments promised within the current hour: the part of "overdue" that moves between whole hours.
CREATE INDEX shipments_due ON shipments (promised_at, carrier, mode)
  WHERE status NOT IN ('delivered', 'returned', 'cancelled') AND promised_at IS NOT NULL;

-- Upper bounds of the transit time histogram, in seconds: 1, 3, 6, 12 hours, then days. What is slower falls into the last.
CREATE TABLE transit_bounds (
  le INTEGER PRIMARY KEY
);
INSERT INTO transit_bounds VALUES
  (3600), (10800), (21600), (43200),
  (1 * 86400), (2 * 86400), (3 * 86400), (4 * 86400), (5 * 86400), (6 * 86400), (7 * 86400), (10 * 86400), (14 * 86400),
  (21 * 86400), (30 * 86400), (45 * 86400), (60 * 86400), (90 * 86400), (120 * 86400), (180 * 86400), (270 * 86400),
  (365 * 86400), (730 * 86400), (9223372036854775807);

-- The rollups. Each is a sum over facts (below), kept by triggers in the transaction that changes a shipment, so that a scrape
-- reads a few hundred rows however many shipments there are. An unknown carrier, mode or reason is ''. Rows that reach zero go.
-- Exact through INSERT, UPDATE, DELETE and ON CONFLICT DO UPDATE. Not through REPLACE, which deletes without telling a trigger
-- unless PRAGMA recursive_triggers is on: seed.py --verify finds that, seed.py --rebuild mends it.
CREATE TABLE rollup_lane (                  -- shipments by carrier, mode and status, with their delivery figures
  carrier         TEXT NOT NULL,
  mode            TEXT NOT NULL,
  status          TEXT NOT NULL,
  shipments       INTEGER NOT NULL,
  on_time         INTEGER NOT NULL,         -- delivered, with both dates, no later than promised
  late            INTEGER NOT NULL,         -- delivered, with both dates, later than promised
  late_seconds    INTEGER NOT NULL,         -- sum over the late ones
  transits        INTEGER NOT NULL,         -- delivered, with a start and a delivery time in that order
  transit_seconds INTEGER NOT NULL,         -- sum over those
  negative        INTEGER NOT NULL,         -- delivered before their start: data errors, kept out of the sum
  PRIMARY KEY (carrier, mode, status)
) WITHOUT ROWID;

CREATE TABLE rollup_transit (               -- the histogram of transit times
  carrier   TEXT NOT NULL,
  mode      TEXT NOT NULL,
  le        INTEGER NOT NULL REFERENCES transit_bounds,
  shipments INTEGER NOT NULL,               -- above the previous bound and up to this one; not cumulative
  PRIMARY KEY (carrier, mode, le)
) WITHOUT ROWID;

CREATE TABLE rollup_due (                   -- open shipments by the hour in which their promise runs out
  hour      TEXT NOT NULL,
  carrier   TEXT NOT NULL,
  mode      TEXT NOT NULL,
  shipments INTEGER NOT NULL,
  PRIMARY KEY (hour, carrier, mode)
) WITHOUT ROWID;

CREATE TABLE rollup_hour (                  -- what happened in each hour; a date without a time counts at its hour 00
  hour      TEXT PRIMARY KEY,
  created   INTEGER NOT NULL,
  delivered INTEGER NOT NULL,
  on_time   INTEGER NOT NULL,
  late      INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE rollup_exception (             -- shipments in exception now, by reason
  reason    TEXT PRIMARY KEY,
  shipments INTEGER NOT NULL
) WITHOUT ROWID;

-- The former row of an update or delete, while the trigger takes it out of the rollups. Empty at every commit.
CREATE TABLE departed (
  carrier TEXT, mode TEXT, status TEXT,
  created_at TEXT, shipped_at TEXT, promised_at TEXT, delivered_at TEXT, exception_reason TEXT
);

-- What one shipment adds to the rollups: every definition of a figure stands here, once, but that of open, which indexes and
-- queries must repeat.
-- sign is 1 for a shipment and -1 for a departed one.
CREATE VIEW facts AS
SELECT
  id, sign, carrier, mode, status,
  substr(created_at || 'T00', 1, 13) AS created_hour,
  CASE WHEN status NOT IN ('delivered', 'returned', 'cancelled') THEN substr(promised_at || 'T23', 1, 13) END AS due_hour,
  CASE WHEN status = 'delivered' THEN substr(delivered_at || 'T00', 1, 13) END AS delivered_hour,
  lateness <= 0 AS on_time,
  lateness > 0 AS late,
  max(lateness, 0) AS late_seconds,
  transit >= 0 AS measured,
  max(transit, 0) AS transit_seconds,
  transit < 0 AS negative,
  CASE WHEN transit >= 0 THEN (SELECT le FROM transit_bounds WHERE le >= transit ORDER BY le LIMIT 1) END AS le,
  CASE WHEN status = 'exception' THEN coalesce(exception_reason, '') END AS reason
FROM (
  SELECT
    *,
    CASE WHEN status = 'delivered' THEN
      strftime('%s', substr(delivered_at, 1, length(promised_at)))
      - strftime('%s', substr(promised_at, 1, length(delivered_at)))
    END AS lateness,
    CASE WHEN status = 'delivered' THEN
      strftime('%s', substr(delivered_at, 1, length(started_at)))
      - strftime('%s', substr(started_at, 1, length(delivered_at)))
    END AS transit
  FROM (
    SELECT id, 1 AS sign, coalesce(carrier, '') AS carrier, coalesce(mode, '') AS mode, status, created_at,
           coalesce(shipped_at, created_at) AS started_at, promised_at, delivered_at, exception_reason
    FROM shipments
    UNION ALL
    SELECT NULL, -1, coalesce(carrier, ''), coalesce(mode, ''), status, created_at,
           coalesce(shipped_at, created_at), promised_at, delivered_at, exception_reason
    FROM departed
  )
);

CREATE TRIGGER facts_apply INSTEAD OF INSERT ON facts BEGIN
  INSERT INTO rollup_lane VALUES (NEW.carrier, NEW.mode, NEW.status, NEW.sign,
    NEW.sign * ifnull(NEW.on_time, 0), NEW.sign * ifnull(NEW.late, 0), NEW.sign * ifnull(NEW.late_seconds, 0),
    NEW.sign * ifnull(NEW.measured, 0), NEW.sign * ifnull(NEW.transit_seconds, 0), NEW.sign * ifnull(NEW.negative, 0))
  ON CONFLICT (carrier, mode, status) DO UPDATE SET
    shipments = shipments + excluded.shipments,
    on_time = on_time + excluded.on_time,
    late = late + excluded.late,
    late_seconds = late_seconds + excluded.late_seconds,
    transits = transits + excluded.transits,
    transit_seconds = transit_seconds + excluded.transit_seconds,
    negative = negative + excluded.negative;
  DELETE FROM rollup_lane
  WHERE NEW.sign < 0 AND carrier = NEW.carrier AND mode = NEW.mode AND status = NEW.status AND shipments = 0;

  INSERT INTO rollup_transit SELECT NEW.carrier, NEW.mode, NEW.le, NEW.sign WHERE NEW.le IS NOT NULL
  ON CONFLICT (carrier, mode, le) DO UPDATE SET shipments = shipments + excluded.shipments;
  DELETE FROM rollup_transit
  WHERE NEW.sign < 0 AND carrier = NEW.carrier AND mode = NEW.mode AND le = NEW.le AND shipments = 0;

  INSERT INTO rollup_due SELECT NEW.due_hour, NEW.carrier, NEW.mode, NEW.sign WHERE NEW.due_hour IS NOT NULL
  ON CONFLICT (hour, carrier, mode) DO UPDATE SET shipments = shipments + excluded.shipments;
  DELETE FROM rollup_due
  WHERE NEW.sign < 0 AND hour = NEW.due_hour AND carrier = NEW.carrier AND mode = NEW.mode AND shipments = 0;

  INSERT INTO rollup_hour SELECT NEW.created_hour, NEW.sign, 0, 0, 0 WHERE NEW.created_hour IS NOT NULL
  ON CONFLICT (hour) DO UPDATE SET created = created + excluded.created;
  INSERT INTO rollup_hour
  SELECT NEW.delivered_hour, 0, NEW.sign, NEW.sign * ifnull(NEW.on_time, 0), NEW.sign * ifnull(NEW.late, 0)
  WHERE NEW.delivered_hour IS NOT NULL
  ON CONFLICT (hour) DO UPDATE SET
    delivered = delivered + excluded.delivered, on_time = on_time + excluded.on_time, late = late + excluded.late;
  DELETE FROM rollup_hour
  WHERE NEW.sign < 0 AND hour IN (NEW.created_hour, NEW.delivered_hour) AND created = 0 AND delivered = 0;

  INSERT INTO rollup_exception SELECT NEW.reason, NEW.sign WHERE NEW.reason IS NOT NULL
  ON CONFLICT (reason) DO UPDATE SET shipments = shipments + excluded.shipments;
  DELETE FROM rollup_exception WHERE NEW.sign < 0 AND reason = NEW.reason AND shipments = 0;
END;

-- Deliveries ever, by outcome: counters for rates, which never go down. One is counted whenever a shipment comes to have another
-- outcome than before: once when it is delivered, and again when a correction changes the outcome, which takes nothing from the
-- former one. What deletes a shipment or takes a delivery back does not subtract either. What is true now stands in rollup_lane.
CREATE TABLE deliveries (
  outcome   TEXT PRIMARY KEY,
  shipments INTEGER NOT NULL
) WITHOUT ROWID;
INSERT INTO deliveries VALUES ('on_time', 0), ('late', 0), ('not_evaluated', 0);

-- How each delivered shipment ended, and in departed the former row.
CREATE VIEW outcomes AS
SELECT id, sign, CASE on_time WHEN 1 THEN 'on_time' WHEN 0 THEN 'late' ELSE 'not_evaluated' END AS outcome
FROM facts WHERE status = 'delivered';

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

-- Stamps an update that did not say when it happened, but only if it changed something.
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

-- The steps that this database went through. migrate.py adds a row in the transaction of the step itself; in a database made from
-- this file all are there from the start.
CREATE TABLE migrations (
  number     INTEGER PRIMARY KEY,           -- of the file migrations/NNNN_name.sql
  name       TEXT NOT NULL,
  hash       TEXT NOT NULL,                 -- SHA-256 of the file
  applied_at TEXT NOT NULL,                 -- an instant
  tool       TEXT NOT NULL,                 -- what applied it, in which version
  seconds    REAL NOT NULL                  -- that it took
);
INSERT INTO migrations (number, name, hash, applied_at, tool, seconds)
SELECT column1, column2, column3, strftime('%Y-%m-%dT%H:%M:%SZ', 'now'), 'schema.sql', 0 FROM (VALUES
  (1, 'create_shipments', '85e644a5de98c40cedcd083b3555d685eca9840b20b62a5b6332ed5327ea6d7e'),
  (2, 'add_change_times', '8f5137b652420f42223ea32f1c1772758f8936c0883179b4b32abfaad7d0d27c'),
  (3, 'constrain_shipments', '4f33f45edd12eb3d6d7e81c269fa0a5091609bd9296cac3dbf9f8a49847f1568'),
  (4, 'add_rollups', '66cc6b43ffddb449ab2addd1dfc8f37311c8a42d7cefb0a19d11959564db4364'),
  (5, 'count_deliveries', '9bd7a1c197b5698dd1c9f0064b4eec64bbe25c730a50d7e888099dfe3d13e924')
);
