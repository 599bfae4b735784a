"""The HTML report: one file that holds everything and loads nothing.

- `elements`: text becomes HTML, escaped.
- `page`: sections become a document, with the style and the script in this folder.
- `overview`, `charts`, `gallery`: the sections.
"""

__all__: tuple[str, ...] = ()  # parts of a page, no interface of the library
