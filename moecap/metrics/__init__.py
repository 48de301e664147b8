"""Pure functions over recorded tables: performance, cost, accuracy and CAP. They see files, never a live run."""
