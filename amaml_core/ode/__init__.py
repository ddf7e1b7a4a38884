"""Systems of ordinary differential equations: their solution, and the way back along it."""
