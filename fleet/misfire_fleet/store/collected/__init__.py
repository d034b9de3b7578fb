"""Selects by what people collected in the console: pins and selections."""
