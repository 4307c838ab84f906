"""Training many: tasks of one build file over processes and machines, how each ended, and all of them in a table."""
