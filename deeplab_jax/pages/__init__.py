"""HTML output: the report of a run, the page of a data check, and the demo."""
