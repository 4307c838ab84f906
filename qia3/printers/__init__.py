"""How a page looks: as Markdown, in a terminal, as JSON and as HTML. Each printer takes any page (qia3.footprint.sections)."""
