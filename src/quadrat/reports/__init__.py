"""Reading a sweep: run folders become a table, charts and one page; nothing here changes a run folder."""
