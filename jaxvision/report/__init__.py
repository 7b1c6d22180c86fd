"""report.html: what a run was and what became of it, in one file that needs nothing else. `page.write` makes it."""
