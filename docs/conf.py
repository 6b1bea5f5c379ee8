"""Sphinx configuration: MyST Markdown, theme Furo; `make docs` uses it."""

project = "pruneflow"
author = "the pruneflow authors"

extensions = ["myst_parser"]
myst_heading_anchors = 3  # links to headings, as on GitHub

nitpicky = True

html_theme = "furo"
html_title = "pruneflow"
html_static_path = ["static"]
html_css_files = ["tables.css"]
html_show_sphinx = False
html_show_copyright = False
html_copy_source = False
html_theme_options = {"navigation_with_keys": True}
