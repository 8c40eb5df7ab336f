"""Drills of log and file system."""

SCENARIOS = ()
