"""Runs cells: what is left to do, one fresh process each, the machine they run on, how long it takes."""
