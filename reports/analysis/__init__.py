"""Statistics of records: frames in, numbers out. Nothing is drawn here, and only titles and labels are words."""
