"""What any room may use: files, texts, tables, figures and timing. The last needs torch."""
