"""Arrays that tasks hold: images, tables, text, points."""
