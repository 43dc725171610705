"""Values, tables, HTML and figures for a reader. Nothing here knows a result by name."""
