"""Runs cells: what is left to do, the processes for it, the machine they run on, how long it takes."""
