"""Training many tasks of one build file over processes and machines: how each ended, and a table of all of them."""
