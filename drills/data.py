"""Drills of time and of the rows themselves."""

SCENARIOS = ()
