"""How the steps of an inner solve run: eager, or compiled as a whole, on one thread or several."""
