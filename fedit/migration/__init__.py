"""Jobs, rows, templates and adapters of other frameworks, read as fedit's own."""
