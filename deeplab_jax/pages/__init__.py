"""What is drawn for people: the report, the data check's page, the demo."""
