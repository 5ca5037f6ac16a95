"""Reports: console and JSON."""
