-- Adds counters of deliveries by outcome that never go down, so that a scraper may take their rate. They begin with the
-- deliveries that are there.

CREATE TABLE deliveries (
  outcome   TEXT PRIMARY KEY,
  shipments INTEGER NOT NULL
) WITHOUT ROWID;

CREATE VIEW outcomes AS
SELECT id, sign, CASE on_time WHEN 1 THEN 'on_time' WHEN 0 THEN 'late' ELSE 'not_evaluated' END AS outcome
FROM facts WHERE status = 'delivered';

INSERT INTO deliveries
SELECT 'on_time', ifnull(sum(on_time), 0) FROM rollup_lane
UNION ALL SELECT 'late', ifnull(sum(late), 0) FROM rollup_lane
UNION ALL SELECT 'not_evaluated', ifnull(sum(shipments - on_time - late), 0) FROM rollup_lane WHERE status = 'delivered';

DROP TRIGGER shipments_insert;
CREATE TRIGGER shipments_insert AFTER INSERT ON shipments BEGIN
  INSERT INTO facts SELECT * FROM facts WHERE id = NEW.id;
  UPDATE deliveries SET shipments = shipments + 1 WHERE outcome = (SELECT outcome FROM outcomes WHERE id = NEW.id);
END;

DROP TRIGGER shipments_update;
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
