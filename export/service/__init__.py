"""``metricgold serve``: metric depth over HTTP, from exported graphs, without torch."""
