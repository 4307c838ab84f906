"""Serves one base with all its tasks at once over HTTP: jobs, the thread that runs them, adapters, routes. No torch."""
