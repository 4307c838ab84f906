"""One base that answers for all its tasks at once, over HTTP: jobs, the thread that runs them, adapters, routes. No torch."""
