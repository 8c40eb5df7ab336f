-- Adds the rollups that the figures are read from, so that a scrape costs the same however many shipments there are.
-- They are filled from the rows, then kept by triggers.

-- The figures need it no more.
DROP INDEX shipments_status;

CREATE INDEX shipments_due ON shipments (promised_at, carrier, mode)
  WHERE status NOT IN ('delivered', 'returned', 'cancelled') AND promised_at IS NOT NULL;

CREATE TABLE transit_bounds (
  le INTEGER PRIMARY KEY
);
INSERT INTO transit_bounds VALUES
  (3600), (10800), (21600), (43200),
  (1 * 86400), (2 * 86400), (3 * 86400), (4 * 86400), (5 * 86400), (6 * 86400), (7 * 86400), (10 * 86400), (14 * 86400),
  (21 * 86400), (30 * 86400), (45 * 86400), (60 * 86400), (90 * 86400), (120 * 86400), (180 * 86400), (270 * 86400),
  (365 * 86400), (730 * 86400), (9223372036854775807);

CREATE TABLE rollup_lane (
  carrier         TEXT NOT NULL,
  mode            TEXT NOT NULL,
  status          TEXT NOT NULL,
  shipments       INTEGER NOT NULL,
  on_time         INTEGER NOT NULL,
  late            INTEGER NOT NULL,
  late_seconds    INTEGER NOT NULL,
  transits        INTEGER NOT NULL,
  transit_seconds INTEGER NOT NULL,
  negative        INTEGER NOT NULL,
  PRIMARY KEY (carrier, mode, status)
) WITHOUT ROWID;

CREATE TABLE rollup_transit (
  carrier   TEXT NOT NULL,
  mode      TEXT NOT NULL,
  le        INTEGER NOT NULL REFERENCES transit_bounds,
  shipments INTEGER NOT NULL,
  PRIMARY KEY (carrier, mode, le)
) WITHOUT ROWID;

CREATE TABLE rollup_due (
  hour      TEXT NOT NULL,
  carrier   TEXT NOT NULL,
  mode      TEXT NOT NULL,
  shipments INTEGER NOT NULL,
  PRIMARY KEY (hour, carrier, mode)
) WITHOUT ROWID;

CREATE TABLE rollup_hour (
  hour      TEXT PRIMARY KEY,
  created   INTEGER NOT NULL,
  delivered INTEGER NOT NULL,
  on_time   INTEGER NOT NULL,
  late      INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE rollup_exception (
  reason    TEXT PRIMARY KEY,
  shipments INTEGER NOT NULL
) WITHOUT ROWID;

CREATE TABLE departed (
  carrier TEXT, mode TEXT, status TEXT,
  created_at TEXT, shipped_at TEXT, promised_at TEXT, delivered_at TEXT, exception_reason TEXT
);

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

-- Working out the times costs most, so a tally, one cell for each combination that occurs, does it once for two rollups.
CREATE TEMP TABLE tally AS
SELECT carrier, mode, status, le, on_time, count(*) AS shipments, sum(late_seconds) AS late_seconds,
       sum(transit_seconds) AS transit_seconds, sum(negative) AS negative
FROM facts GROUP BY carrier, mode, status, le, on_time;

INSERT INTO rollup_lane
SELECT carrier, mode, status, sum(shipments), ifnull(sum(shipments * on_time), 0), ifnull(sum(shipments * (NOT on_time)), 0),
       ifnull(sum(late_seconds), 0), sum(shipments * (le IS NOT NULL)), ifnull(sum(transit_seconds), 0), ifnull(sum(negative), 0)
FROM tally GROUP BY carrier, mode, status;

INSERT INTO rollup_transit
SELECT carrier, mode, le, sum(shipments) FROM tally WHERE le IS NOT NULL GROUP BY carrier, mode, le;

DROP TABLE tally;

INSERT INTO rollup_due
SELECT due_hour, carrier, mode, count(*) FROM facts WHERE due_hour IS NOT NULL GROUP BY due_hour, carrier, mode;

INSERT INTO rollup_hour
SELECT hour, sum(created), sum(delivered), ifnull(sum(delivered * on_time), 0), ifnull(sum(delivered * (NOT on_time)), 0)
FROM (SELECT created_hour AS hour, count(*) AS created, 0 AS delivered, NULL AS on_time
      FROM facts WHERE created_hour IS NOT NULL GROUP BY created_hour
      UNION ALL
      SELECT delivered_hour, 0, count(*), on_time
      FROM facts WHERE delivered_hour IS NOT NULL GROUP BY delivered_hour, on_time)
GROUP BY hour;

INSERT INTO rollup_exception SELECT reason, count(*) FROM facts WHERE reason IS NOT NULL GROUP BY reason;

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

CREATE TRIGGER shipments_insert AFTER INSERT ON shipments BEGIN
  INSERT INTO facts SELECT * FROM facts WHERE id = NEW.id;
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
  DELETE FROM departed;
  INSERT INTO facts SELECT * FROM facts WHERE id = NEW.id;
END;
