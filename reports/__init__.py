"""Reports: read stores of records and show them. Measures nothing and imports no torch."""
