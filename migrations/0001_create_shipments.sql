-- Creates the first release's table of shipments, in which only reference and status are required and nothing checks the values.

-- What migrate.py has done to this database.
CREATE TABLE migrations (
  number     INTEGER PRIMARY KEY,
  name       TEXT NOT NULL,
  hash       TEXT NOT NULL,
  applied_at TEXT NOT NULL,
  tool       TEXT NOT NULL,
  seconds    REAL NOT NULL
);

CREATE TABLE shipments (
  id           INTEGER PRIMARY KEY,
  reference    TEXT NOT NULL UNIQUE,
  carrier      TEXT,
  mode         TEXT,
  service      TEXT,
  origin       TEXT,
  destination  TEXT,
  status       TEXT NOT NULL,
  created_at   TEXT,
  shipped_at   TEXT,
  promised_at  TEXT,
  delivered_at TEXT,
  weight_kg    REAL,
  cost         REAL,
  currency     TEXT
);

-- Figures are counted from the rows.
CREATE INDEX shipments_status ON shipments (status, carrier, mode);
