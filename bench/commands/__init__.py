"""The commands of ``amaml-bench``, a file each. What takes time to import is imported when a command runs."""
