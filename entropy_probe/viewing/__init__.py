"""Looking at a record: a page, a notebook cell, a terminal; pure functions of it."""
