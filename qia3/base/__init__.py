"""A frozen base model as 4-bit torch modules: finding and reading it, quantising it, and the modules themselves."""
