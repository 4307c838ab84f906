"""A frozen base model as 4-bit torch modules: where it comes from, how it is quantised, the modules themselves."""
