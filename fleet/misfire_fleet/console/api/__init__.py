"""Serves the console's JSON API: the same rows as the pages, for programs. /openapi.json describes it."""
