"""Prints a page as Markdown, in a terminal, as JSON or as HTML. Each printer takes any page (qia3.footprint.sections)."""
