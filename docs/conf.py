"""The site, built by `make docs`: every warning, such as a broken link, ends the build."""

project = "tailfit"
author = "The tailfit authors"
copyright = "The tailfit authors; Apache-2.0"
html_title = "tailfit"

extensions = ["myst_parser"]
myst_heading_anchors = 3  # links to #headings are checked like links to pages
nitpicky = True
smartquotes = False  # --options stay as they are typed

# furo fetches no fonts, scripts or pictures from elsewhere: the site opens offline.
html_theme = "furo"
html_show_sphinx = False
html_copy_source = False
html_show_sourcelink = False
