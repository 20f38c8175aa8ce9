"""HTML output: the run report, the data check page, and the demo."""
