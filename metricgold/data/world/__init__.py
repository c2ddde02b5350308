"""The procedural world: shapes, textures, layouts. Rendered by ``metricgold.data.procedural``."""
