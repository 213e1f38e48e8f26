"""Files, texts and tables: what any room may use. Needs the standard library alone."""
