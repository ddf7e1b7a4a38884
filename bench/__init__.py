"""Measurements of meta-gradient methods: memory, time, accuracy, counts. Importing this package imports no torch."""
