"""Drills of the process."""

SCENARIOS = ()
