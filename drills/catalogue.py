"""All drills, in the order of their numbers."""

from drills import configuration, data, database, files, process, schema

LAYERS = (configuration, files, database, schema, process, data)
SCENARIOS = sorted((one for layer in LAYERS for one in layer.SCENARIOS), key=lambda one: one.id)
BY_ID = {one.id: one for one in SCENARIOS}
CAUSES = sorted({one.cause for one in SCENARIOS} | {"none", "undecided"})
