"""Drills of the database file: locks, pages, journals, copies."""

SCENARIOS = ()
