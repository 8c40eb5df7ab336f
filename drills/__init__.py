"""The drills of metrics_service: scenarios as tables, and what runs and judges them. drill.py at the top is the way in."""
