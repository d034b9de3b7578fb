"""The console: pages and JSON over the store."""
