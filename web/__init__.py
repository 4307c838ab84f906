"""The web's files, shipped as qia3.web: qia3.mjs, and what `qia3 page` makes a page of."""
