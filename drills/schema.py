"""Drills of the schema and of derived data."""

SCENARIOS = ()
